-- Times are microseconds: since 1970, but `due` of leased messages since the machine was started.
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID;

-- Queue. A message is three rows: its dedup row gives it a number that never comes back (the newest row is never swept),
-- `messages` holds its state, and `bodies` what is only read, so that a state change does not rewrite the body.
CREATE TABLE queues (name TEXT PRIMARY KEY, paused INTEGER NOT NULL DEFAULT 0) STRICT, WITHOUT ROWID;
CREATE TABLE dedup (id INTEGER PRIMARY KEY, dedup_id TEXT NOT NULL UNIQUE, at INTEGER NOT NULL) STRICT;
CREATE TABLE messages (
    id INTEGER PRIMARY KEY,
    queue TEXT NOT NULL,
    rank INTEGER NOT NULL,              -- 9 minus the priority
    state INTEGER NOT NULL,             -- 0 ready, 1 delayed, 2 leased
    due INTEGER,                        -- when the delay or the lease ends
    token INTEGER NOT NULL,             -- which claim; 0: never handed over
    owner TEXT,
    submitted INTEGER NOT NULL,
    task TEXT NOT NULL
) STRICT;
CREATE INDEX messages_ready ON messages (queue, rank, id) WHERE state = 0;
CREATE INDEX messages_delayed ON messages (due) WHERE state = 1;
CREATE INDEX messages_leased ON messages (due) WHERE state = 2;
CREATE INDEX messages_task ON messages (task);
CREATE TABLE bodies (
    id INTEGER PRIMARY KEY,
    content_type TEXT NOT NULL,
    content_encoding TEXT,
    headers TEXT,                       -- a JSON object; null when empty
    body BLOB NOT NULL
) STRICT;
CREATE TABLE dead (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    task TEXT NOT NULL,
    queue TEXT NOT NULL,
    reason TEXT NOT NULL,
    parked INTEGER NOT NULL,
    content_type TEXT NOT NULL,
    content_encoding TEXT,
    headers TEXT,
    body BLOB NOT NULL
) STRICT;
CREATE INDEX dead_queue ON dead (queue);

-- Events: `seq` runs over both tables; the newest row of each is never swept, so that no number comes back.
CREATE TABLE status (
    seq INTEGER PRIMARY KEY,
    task TEXT NOT NULL,
    queue TEXT NOT NULL,
    fence INTEGER NOT NULL,
    number INTEGER NOT NULL,
    time INTEGER NOT NULL,
    data TEXT NOT NULL
) STRICT;
CREATE INDEX status_task ON status (task);
CREATE TABLE chatter (
    seq INTEGER PRIMARY KEY,
    task TEXT NOT NULL,
    queue TEXT NOT NULL,
    fence INTEGER NOT NULL,
    number INTEGER NOT NULL,
    time INTEGER NOT NULL,
    data TEXT NOT NULL
) STRICT;
CREATE INDEX chatter_task ON chatter (task);
CREATE TABLE commands (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    at INTEGER NOT NULL,
    command TEXT NOT NULL
) STRICT;
CREATE TABLE cancels (task TEXT PRIMARY KEY, reason TEXT NOT NULL, at INTEGER NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE workers (worker TEXT PRIMARY KEY, deadline INTEGER NOT NULL, presence TEXT NOT NULL) STRICT, WITHOUT ROWID;

-- Records: the columns are what is searched or changed alone; they outrank the document.
CREATE TABLE records (
    id INTEGER PRIMARY KEY,
    task TEXT NOT NULL UNIQUE,
    revision INTEGER NOT NULL,
    fence INTEGER NOT NULL,
    status INTEGER NOT NULL,
    queue TEXT NOT NULL,
    changed INTEGER NOT NULL,
    bytes INTEGER NOT NULL,
    lease_until INTEGER,
    owed TEXT,                          -- sink names by line; null when nothing is owed
    labels INTEGER NOT NULL,            -- a sum of the labels; 0 when there are none
    document TEXT NOT NULL
) STRICT;
CREATE INDEX records_place ON records (queue, status, changed, bytes);
CREATE INDEX records_owing ON records (lease_until) WHERE owed IS NOT NULL;
CREATE TABLE labels (
    name TEXT NOT NULL,
    value TEXT NOT NULL,
    record INTEGER NOT NULL,
    PRIMARY KEY (name, value, record)
) STRICT, WITHOUT ROWID;
CREATE INDEX labels_record ON labels (record);
