//! What a server says of itself: whether it is new enough, and whether it keeps what it is given.

use super::{Link, LinkError, value};

/// The oldest version that has every command that is used.
const OLDEST: (u32, u32) = (7, 0);

/// What a server says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Health {
    version: String,
    maxmemory: u64,
    policy: String,
    appends: bool,
    /// `None`: it does not tell.
    snapshots: Option<bool>,
}

/// What is kept there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wants {
    /// Tasks.
    Tasks,
    /// Records.
    Records,
}

impl Health {
    /// Asks.
    pub async fn of(link: &Link) -> Result<Self, LinkError> {
        let info = value::text(link.send(&redis::cmd("INFO")).await?)?;
        // Many hosted servers forbid it.
        let save = link.send(redis::cmd("CONFIG").arg("GET").arg("save")).await.ok();
        Ok(Self::read(&info, save.and_then(saves)))
    }

    fn read(info: &str, snapshots: Option<bool>) -> Self {
        let field = |name: &str| {
            info.lines().find_map(|line| line.trim_end().strip_prefix(name)?.strip_prefix(':')).unwrap_or("")
        };
        Self {
            version: field("redis_version").to_owned(),
            maxmemory: field("maxmemory").parse().unwrap_or(0),
            policy: field("maxmemory_policy").to_owned(),
            appends: field("aof_enabled") == "1",
            snapshots,
        }
    }

    /// Refuses a server that is too old.
    pub fn check(&self) -> Result<(), LinkError> {
        let mut numbers = self.version.split('.').map(|part| part.parse().unwrap_or(0));
        let found = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
        if found >= OLDEST {
            return Ok(());
        }
        Err(LinkError::Refused(format!(
            "it is version {:?}; Redis {}.{} or later, or Valkey, is needed",
            self.version, OLDEST.0, OLDEST.1
        )))
    }

    /// What may lose data, with what it means and what to do.
    pub fn warnings(&self, wants: Wants) -> Vec<String> {
        let mut warnings = Vec::new();
        let what = match wants {
            Wants::Tasks => "waiting tasks",
            Wants::Records => "records of tasks",
        };
        if self.maxmemory > 0 && self.policy != "noeviction" {
            warnings.push(format!(
                "the server may evict {what}: with maxmemory-policy {} it removes keys once it holds {} bytes, and what is \
                 removed is lost without a word; set maxmemory-policy noeviction",
                self.policy, self.maxmemory
            ));
        }
        match (self.appends, self.snapshots) {
            (true, _) => {}
            (false, Some(false)) => warnings.push(format!(
                "the server keeps nothing on disk: all {what} are lost when it ends; set appendonly yes"
            )),
            (false, Some(true) | None) => warnings.push(format!(
                "the server writes to disk only now and then: {what} of the last minutes are lost when it ends; set appendonly yes"
            )),
        }
        warnings
    }
}

/// Whether `CONFIG GET save` names any snapshot.
fn saves(answer: redis::Value) -> Option<bool> {
    let values = match answer {
        redis::Value::Map(pairs) => pairs.into_iter().flat_map(|(key, value)| [key, value]).collect(),
        other => value::list(other).ok()?,
    };
    value::text(values.into_iter().nth(1)?).ok().map(|save| !save.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    const INFO: &str = "# Server\r\nredis_version:7.0.15\r\nmaxmemory:1048576\r\nmaxmemory_policy:allkeys-lru\r\naof_enabled:0\r\n";

    #[test]
    fn what_may_lose_tasks_is_told_with_its_meaning_and_remedy() {
        insta::assert_snapshot!(Health::read(INFO, Some(false)).warnings(Wants::Tasks).join("\n"));
        assert_eq!(Health::read(INFO, None).warnings(Wants::Records).len(), 2);
    }

    #[test]
    fn a_server_that_keeps_everything_is_not_warned_of() {
        let info = INFO.replace("aof_enabled:0", "aof_enabled:1").replace("allkeys-lru", "noeviction");
        assert!(Health::read(&info, Some(false)).warnings(Wants::Tasks).is_empty());
        let unbounded = info.replace("noeviction", "allkeys-lru").replace("maxmemory:1048576", "maxmemory:0");
        assert!(Health::read(&unbounded, Some(false)).warnings(Wants::Tasks).is_empty());
    }

    #[test]
    fn an_old_server_is_refused() {
        assert!(Health::read(&INFO.replace("7.0.15", "6.2.7"), None).check().is_err());
        for new in ["7.0.15", "7.2.4", "10.0.1"] {
            assert!(Health::read(&INFO.replace("7.0.15", new), None).check().is_ok());
        }
    }
}
