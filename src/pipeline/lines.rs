//! Progress as a container writes it: one JSON object per line, in whatever pieces the bytes come, at whatever length.
//! Called by the `ProgressPipe`.

use serde::Deserialize;

use crate::events::Progress;

/// What a line was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known {
    /// Progress.
    Progress,
    /// Nothing but white space.
    Blank,
    /// Anything else.
    Bad,
}

/// The fields of a line. What it leaves out or says to be null stays as it was; other fields mean nothing.
#[derive(Deserialize)]
struct Line {
    message: Option<String>,
    total: Option<f64>,
    current: Option<f64>,
}

/// Changes `progress` as `line` says.
pub fn merge(progress: &mut Progress, line: &[u8]) -> Known {
    let line = line.trim_ascii();
    if line.is_empty() {
        return Known::Blank;
    }
    // A sequence would deserialise into the struct, too.
    match serde_json::from_slice::<Line>(line) {
        Ok(said) if line.starts_with(b"{") => {
            progress.message = said.message.or(progress.message.take());
            progress.total = said.total.or(progress.total);
            progress.current = said.current.or(progress.current);
            Known::Progress
        }
        _ => Known::Bad,
    }
}

/// Cuts bytes into lines of a bounded length. A longer one is skipped up to its end.
pub struct Lines {
    rest: Vec<u8>,
    longest: usize,
    skipping: bool,
    bad: u64,
    first_bad: Option<String>,
}

impl Lines {
    /// Lines of at most `longest` bytes.
    pub fn new(longest: usize) -> Self {
        Self { rest: Vec::new(), longest, skipping: false, bad: 0, first_bad: None }
    }

    /// Takes the next bytes and tells the lines that end in them.
    pub fn feed(&mut self, bytes: &[u8], tell: &mut dyn FnMut(&[u8]) -> Known) {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            let Some(end) = piece.strip_suffix(b"\n") else {
                self.keep(piece);
                continue;
            };
            if self.rest.is_empty() && !self.skipping && end.len() <= self.longest {
                self.tell(end, tell);
            } else {
                self.keep(end);
                self.end(tell);
            }
        }
    }

    /// Tells what is left as the last line.
    pub fn end(&mut self, tell: &mut dyn FnMut(&[u8]) -> Known) {
        let line = std::mem::take(&mut self.rest);
        if !std::mem::take(&mut self.skipping) {
            self.tell(&line, tell);
        }
        self.rest = line;
        self.rest.clear();
    }

    /// What to say of the lines that were no progress, if there were any.
    pub fn complaint(&self, name: &str) -> Option<String> {
        let first = self.first_bad.as_ref()?;
        let lines = if self.bad == 1 { "1 line".to_owned() } else { format!("{} lines", self.bad) };
        Some(format!(
            "{name}: {lines} ignored, because each must be a JSON object with message, total and current; the first was {first}"
        ))
    }

    fn keep(&mut self, bytes: &[u8]) {
        if self.skipping {
            return;
        }
        if self.rest.len() + bytes.len() > self.longest {
            self.complain(format!("longer than {} bytes", self.longest));
            self.skipping = true;
            self.rest = Vec::new();
        } else {
            self.rest.extend_from_slice(bytes);
        }
    }

    fn tell(&mut self, line: &[u8], tell: &mut dyn FnMut(&[u8]) -> Known) {
        if tell(line) == Known::Bad {
            let shown = &line[..line.len().min(80)];
            self.complain(format!("{:?}", String::from_utf8_lossy(shown)));
        }
    }

    fn complain(&mut self, what: String) {
        self.bad += 1;
        self.first_bad.get_or_insert(what);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn lines_of(pieces: &[&[u8]], longest: usize) -> (Vec<Vec<u8>>, Lines) {
        let mut told = Vec::new();
        let mut lines = Lines::new(longest);
        let mut tell = |line: &[u8]| {
            told.push(line.to_owned());
            if line.starts_with(b"bad") { Known::Bad } else { Known::Progress }
        };
        for piece in pieces {
            lines.feed(piece, &mut tell);
        }
        lines.end(&mut tell);
        (told, lines)
    }

    #[test]
    fn a_last_line_without_its_end_counts() {
        assert_eq!(lines_of(&[b"a\nb"], 10).0, [b"a".to_vec(), b"b".to_vec()]);
    }

    #[test]
    fn a_line_that_is_too_long_is_skipped_and_the_next_one_is_not() {
        let (told, lines) =
            lines_of(&[b"0123456789", b"0123", b"45\nok\n0123456789012\nok2\nbad 1\nbad 2\n"], 12);
        assert_eq!(told[..2], [b"ok".to_vec(), b"ok2".to_vec()]);
        let complaint = lines.complaint("ProgressPipe p").unwrap();
        assert!(
            complaint.contains("4 lines ignored") && complaint.contains("longer than 12 bytes"),
            "{complaint}"
        );
    }

    #[test]
    fn what_a_line_leaves_out_stays_as_it_was() {
        let mut progress = Progress::default();
        assert_eq!(merge(&mut progress, br#"{"message": "a", "total": 10, "current": 1}"#), Known::Progress);
        assert_eq!(
            merge(&mut progress, b" {\"current\": 2.5, \"message\": null, \"other\": [1]}\r"),
            Known::Progress
        );
        assert_eq!(
            progress,
            Progress { message: Some("a".to_owned()), total: Some(10.0), current: Some(2.5) }
        );
        for bad in [&b"[\"a\", 1, 2]"[..], b"7", b"{\"total\": \"x\"}", b"{", b"\xff", b"{} {}"] {
            assert_eq!(merge(&mut progress, bad), Known::Bad, "{bad:?}");
        }
        assert_eq!(merge(&mut progress, b"  \r"), Known::Blank);
        assert_eq!(progress.current, Some(2.5));
    }

    proptest! {
        #[test]
        fn lines_do_not_depend_on_how_the_bytes_came(
            text in proptest::collection::vec(prop_oneof![4 => any::<u8>(), 1 => Just(b'\n')], 0..400),
            cuts in proptest::collection::vec(0usize..400, 0..20),
            longest in 1usize..50,
        ) {
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(text.len())).collect();
            cuts.push(text.len());
            cuts.sort_unstable();
            let mut pieces = Vec::new();
            let mut from = 0;
            for cut in cuts {
                pieces.push(&text[from..cut]);
                from = cut;
            }
            let whole: Vec<Vec<u8>> = text
                .split(|byte| *byte == b'\n')
                .filter(|line| line.len() <= longest)
                .map(<[u8]>::to_vec)
                .collect();
            let (mut told, _) = lines_of(&pieces, longest);
            // The end tells an empty last line, which is blank and harmless.
            if text.last() != Some(&b'\n') || told.len() > whole.len() {
                told.truncate(whole.len());
            }
            prop_assert_eq!(told, whole);
        }
    }
}
