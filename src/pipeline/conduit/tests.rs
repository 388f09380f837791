//! Any schedule of short reads and writes, pauses, reopenings and early closes: the bytes are equal, always.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use nix::fcntl::{FcntlArg, fcntl};
use proptest::prelude::*;

use super::*;
use crate::handler::Attempt;
use crate::task::{ArgMap, Task};

/// Sizes and pauses of one side, used round and round.
#[derive(Clone, Debug)]
struct Schedule {
    steps: Vec<(usize, u8)>,
    /// Makes every write short.
    small_pipe: bool,
}

impl Schedule {
    fn sizes(&self) -> impl Iterator<Item = usize> + '_ {
        self.steps.iter().cycle().map(|(size, pause)| {
            match pause {
                0 => std::thread::sleep(Duration::from_micros(50)),
                1 => std::thread::yield_now(),
                _ => {}
            }
            *size
        })
    }

    fn apply(&self, pipe: &File) {
        if self.small_pipe {
            // Refused while more is in it, which is as good a schedule as any.
            let _ = fcntl(pipe, FcntlArg::F_SETPIPE_SZ(4096));
        }
    }
}

fn schedule() -> impl Strategy<Value = Schedule> {
    let size = prop_oneof![1usize..20, 1usize..5_000, 1usize..200_000];
    (proptest::collection::vec((size, 0u8..8), 1..12), any::<bool>())
        .prop_map(|(steps, small_pipe)| Schedule { steps, small_pipe })
}

fn data() -> impl Strategy<Value = Vec<u8>> {
    (prop_oneof![0usize..100, 0usize..300_000], any::<u64>()).prop_map(|(len, seed)| {
        let mut state = seed | 1;
        std::iter::repeat_with(|| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()[3]
        })
        .take(len)
        .collect()
    })
}

/// Two FIFOs and a file in a folder of their own.
struct Place {
    _folder: tempfile::TempDir,
    out: Fifo,
    input: Fifo,
    file: PathBuf,
}

fn place() -> Place {
    let folder = tempfile::tempdir().unwrap();
    let opened = Arc::new(File::open(folder.path()).unwrap());
    let out = Fifo::make(&opened, folder.path(), "out").unwrap();
    let input = Fifo::make(&opened, folder.path(), "in").unwrap();
    let file = folder.path().join("file");
    Place { _folder: folder, out, input, file }
}

/// Writes `data` as the container would; with `reopens` the pipe is closed and opened between pieces.
fn write(path: &Path, data: &[u8], schedule: &Schedule, reopens: bool) {
    let open = || {
        let pipe = OpenOptions::new().write(true).open(path).unwrap();
        schedule.apply(&pipe);
        pipe
    };
    let mut pipe = open();
    let mut rest = data;
    for size in schedule.sizes() {
        let (piece, next) = rest.split_at(size.min(rest.len()));
        if pipe.write_all(piece).is_err() || next.is_empty() {
            return;
        }
        rest = next;
        if reopens {
            drop(pipe);
            pipe = open();
        }
    }
}

/// Reads as the container would, at most `most` bytes.
fn read(path: &Path, schedule: &Schedule, most: usize) -> Vec<u8> {
    let pipe = File::open(path).unwrap();
    schedule.apply(&pipe);
    read_from(pipe, schedule, most)
}

fn read_from(mut pipe: File, schedule: &Schedule, most: usize) -> Vec<u8> {
    let mut got = Vec::new();
    for size in schedule.sizes() {
        let start = got.len();
        got.resize(start + size.min(most - start), 0);
        let n = pipe.read(&mut got[start..]).unwrap();
        got.truncate(start + n);
        if n == 0 {
            break;
        }
    }
    got
}

/// Carries `origin` to `sink` while `container` runs, and returns what the container and the stream came to.
fn carry<T: Send + 'static>(
    origin: Origin,
    sink: Box<dyn Sink>,
    container: impl FnOnce() -> T + Send + 'static,
) -> (T, Result<u64, TaskError>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let attempt = Attempt::detached(Task::new("docker_run", ArgMap::new()));
        let (failures, mut failed) = mpsc::unbounded_channel();
        let gone = CancellationToken::new();
        let around = Surroundings { gone: gone.clone(), failures, report: attempt.report().clone() };
        let prepared = Prepared { name: "test".to_owned(), origin, sink };
        let conduit = Conduit::open(prepared, around, &mut Vec::new()).unwrap();
        let running = tokio::spawn(conduit.run());
        let told = tokio::task::spawn_blocking(container).await.unwrap();
        gone.cancel();
        tokio::time::timeout(Duration::from_secs(30), running).await.expect("the stream ends").unwrap();
        let bytes = attempt.report().snapshot().1.streams[0].bytes;
        (told, failed.try_recv().map_or(Ok(bytes), Err))
    })
}

/// Keeps what it is given, in reads of scheduled sizes.
struct Keep {
    schedule: Schedule,
    kept: Arc<std::sync::Mutex<Vec<u8>>>,
    ends: Ends,
}

#[async_trait]
impl Sink for Keep {
    fn ends(&self) -> Ends {
        self.ends
    }
    async fn take(&mut self, mut source: Source) -> Result<(), StreamError> {
        for (size, pause) in self.schedule.steps.clone().into_iter().cycle() {
            let mut buffer = vec![0; size];
            let n = source.read(&mut buffer).await?;
            if n == 0 {
                break;
            }
            self.kept.lock().unwrap().extend_from_slice(&buffer[..n]);
            if pause == 0 {
                tokio::task::yield_now().await;
            }
        }
        Ok(())
    }
}

/// Where a process's output may go: a file, one that is appended to (which cannot be spliced into), or a pipe whose reader
/// reads by a schedule.
struct Output {
    end: File,
    file: PathBuf,
    reader: Option<std::thread::JoinHandle<Vec<u8>>>,
}

impl Output {
    fn of(kind: u8, file: &Path, reads: &Schedule) -> Self {
        let file = file.to_owned();
        if kind == 2 {
            let (reader, writer) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).unwrap();
            let (reader, reads) = (File::from(reader), reads.clone());
            reads.apply(&reader);
            let reader = std::thread::spawn(move || read_from(reader, &reads, usize::MAX));
            return Self { end: File::from(writer), file, reader: Some(reader) };
        }
        let end = OpenOptions::new().create(true).write(true).append(kind == 1).open(&file).unwrap();
        Self { end, file, reader: None }
    }

    /// All that came, once everybody who writes has ended.
    fn all(self) -> Vec<u8> {
        drop(self.end);
        match self.reader {
            Some(reader) => reader.join().unwrap(),
            None => std::fs::read(self.file).unwrap(),
        }
    }
}

/// Gives pieces of scheduled sizes, and an error at its end when it is broken.
struct Pieces {
    rest: Bytes,
    sizes: Vec<(usize, u8)>,
    next: usize,
    broken: Option<std::sync::mpsc::Sender<()>>,
}

#[async_trait]
impl ByteStream for Pieces {
    async fn next(&mut self) -> Result<Option<Bytes>, TaskError> {
        if self.rest.is_empty() {
            return match &self.broken {
                None => Ok(None),
                Some(told) => {
                    told.send(()).unwrap();
                    Err(TaskError::retryable("source", "the source broke"))
                }
            };
        }
        let (size, pause) = self.sizes[self.next % self.sizes.len()];
        self.next += 1;
        if pause == 0 {
            tokio::task::yield_now().await;
        }
        Ok(Some(self.rest.split_to(size.min(self.rest.len()))))
    }
}

fn pieces(data: &[u8], schedule: &Schedule, broken: Option<std::sync::mpsc::Sender<()>>) -> Origin {
    let rest = Bytes::copy_from_slice(data);
    Origin::Stream(Box::new(Pieces { rest, sizes: schedule.steps.clone(), next: 0, broken }))
}

fn into_container(fifo: &Fifo) -> Box<dyn Sink> {
    Box::new(FifoSink::new(fifo.clone(), Duration::from_millis(20)))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn what_a_container_writes_arrives(
        data in data(), writes in schedule(), reads in schedule(), reopens: bool, lasting: bool,
    ) {
        let place = place();
        let kept = Arc::default();
        let long = Ends::AfterLastWriter(Duration::from_secs(20));
        let ends = if lasting { Ends::WithContainer } else { long };
        let sink = Keep { schedule: reads, kept: Arc::clone(&kept), ends };
        let (path, sent) = (place.out.path().to_owned(), data.clone());
        let container = move || write(&path, &sent, &writes, reopens);
        let ((), carried) = carry(Origin::Fifo(place.out.clone()), Box::new(sink), container);
        prop_assert_eq!(carried.unwrap(), data.len() as u64);
        prop_assert!(*kept.lock().unwrap() == data);
    }

    #[test]
    fn what_a_container_reads_is_what_was_sent(
        data in data(), sends in schedule(), reads in schedule(), stops in prop_oneof![Just(usize::MAX), 0usize..50_000],
    ) {
        let place = place();
        let path = place.input.path().to_owned();
        let container = move || read(&path, &reads, stops);
        let (got, carried) = carry(pieces(&data, &sends, None), into_container(&place.input), container);
        carried.unwrap();
        prop_assert!(got == data[..data.len().min(stops)]);
    }

    #[test]
    fn a_file_arrives_as_it_is(data in data(), reads in schedule(), stops in prop_oneof![Just(usize::MAX), 0usize..50_000]) {
        let place = place();
        std::fs::write(&place.file, &data).unwrap();
        let mut file = File::open(&place.file).unwrap();
        let skipped = data.len() / 3;
        file.seek(std::io::SeekFrom::Start(skipped as u64)).unwrap();
        let path = place.input.path().to_owned();
        let container = move || read(&path, &reads, stops);
        let (got, carried) = carry(Origin::File(file), into_container(&place.input), container);
        carried.unwrap();
        let rest = &data[skipped..];
        prop_assert!(got == rest[..rest.len().min(stops)]);
    }

    #[test]
    fn what_a_container_writes_reaches_the_only_place_of_its_output(
        data in data(), writes in schedule(), reads in schedule(), place_kind in 0u8..3, users in 1u8..3,
    ) {
        let place = place();
        let kept = Output::of(place_kind, &place.file, &reads);
        let streams = HostStreams::alone(kept.end.try_clone().unwrap(), File::open("/dev/null").unwrap());
        let count = Arc::default();
        let sinks: Vec<HostSink> = (0..users).map(|_| HostSink::new(streams.stdout(), &count)).collect();
        let (path, sent) = (place.out.path().to_owned(), data.clone());
        let container = move || write(&path, &sent, &writes, false);
        let sink = Box::new(sinks.into_iter().next().unwrap());
        let ((), carried) = carry(Origin::Fifo(place.out.clone()), sink, container);
        prop_assert_eq!(carried.unwrap(), data.len() as u64);
        drop(streams);
        prop_assert!(kept.all() == data);
    }

    #[test]
    fn one_pipe_into_another_loses_nothing(
        data in data(), writes in schedule(), reads in schedule(), stops in prop_oneof![Just(usize::MAX), 0usize..50_000],
    ) {
        let place = place();
        let (from, to, sent) = (place.out.path().to_owned(), place.input.path().to_owned(), data.clone());
        let container = move || {
            let writer = std::thread::spawn(move || write(&from, &sent, &writes, false));
            let got = read(&to, &reads, stops);
            writer.join().unwrap();
            got
        };
        let origin = Origin::Fifo(place.out.clone());
        let (got, carried) = carry(origin, into_container(&place.input), container);
        carried.unwrap();
        prop_assert!(got == data[..data.len().min(stops)]);
    }
}

#[test]
fn a_container_never_takes_a_broken_source_for_a_whole_one() {
    let place = place();
    let path = place.input.path().to_owned();
    let (told, broke) = std::sync::mpsc::channel();
    let one = Schedule { steps: vec![(10, 7)], small_pipe: false };
    let container = move || {
        let mut pipe = File::open(path).unwrap();
        let mut got = [0; 100];
        pipe.read_exact(&mut got).unwrap();
        broke.recv().unwrap();
        // No end comes: a blocking read would wait, so only looks are had, for as long as the linger of a sink.
        fcntl(&pipe, FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK)).unwrap();
        let until = std::time::Instant::now() + Duration::from_millis(50);
        std::iter::from_fn(|| (std::time::Instant::now() < until).then(|| pipe.read(&mut got)))
            .any(|look| look.is_ok_and(|n| n == 0))
    };
    let (ended, carried) =
        carry(pieces(&[7; 100], &one, Some(told)), into_container(&place.input), container);
    assert!(!ended, "the container saw an end");
    assert!(carried.unwrap_err().message.contains("the source broke"));
}

#[test]
fn whoever_opens_an_input_again_gets_an_end_at_once() {
    let place = place();
    let path = place.input.path().to_owned();
    let one = Schedule { steps: vec![(10, 7)], small_pipe: false };
    let container = move || (0..5).map(|_| read(&path, &one, usize::MAX).len()).collect::<Vec<_>>();
    let sends = Schedule { steps: vec![(10, 7)], small_pipe: false };
    let (got, carried) = carry(pieces(&[7; 95], &sends, None), into_container(&place.input), container);
    assert_eq!(got, [95, 0, 0, 0, 0]);
    assert_eq!(carried.unwrap(), 95);
}
