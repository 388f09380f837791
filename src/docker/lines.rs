//! Bytes into lines, bounded and without loss: what a container prints becomes text here.
//!
//! Whoever is told lines is told where they end, too, so that a later process can go on there: [`Skip`] passes over what
//! was told before.

use crate::events::Mark;

/// The most bytes of whole lines told at once: a flood is told in blocks, which the log joins anyway.
const BLOCK: usize = 8 << 10;

/// Splits one stream into lines. A line longer than the bound is told in pieces of that length.
#[derive(Debug)]
pub(super) struct Lines {
    partial: Vec<u8>,
    bound: usize,
    told: Mark,
}

/// Finds the place in a stream, read again from its beginning, up to which it was told before.
#[derive(Debug)]
pub(super) struct Skip {
    left: Mark,
}

impl Skip {
    /// Up to `mark`.
    pub(super) fn to(mark: Mark) -> Self {
        Self { left: mark }
    }

    /// Whether the place is reached.
    pub(super) fn is_there(&self) -> bool {
        self.left == Mark::default()
    }

    /// How many of the next bytes lie before the place.
    pub(super) fn pass(&mut self, bytes: &[u8]) -> usize {
        let mut passed = 0;
        while self.left.lines > 0 {
            let Some(end) = bytes[passed..].iter().position(|byte| *byte == b'\n') else {
                return bytes.len();
            };
            passed += end + 1;
            self.left.lines -= 1;
        }
        let within = usize::try_from(self.left.within).unwrap_or(usize::MAX).min(bytes.len() - passed);
        self.left.within -= within as u64;
        passed + within
    }
}

impl Lines {
    /// For lines of at most `bound` bytes.
    pub(super) fn new(bound: usize) -> Self {
        Self { partial: Vec::new(), bound: bound.max(4), told: Mark::default() }
    }

    /// The same for the bytes behind `told`.
    pub(super) fn at(bound: usize, told: Mark) -> Self {
        Self { told, ..Self::new(bound) }
    }

    /// Takes the next bytes and tells the lines that they complete: one or several, joined by line feeds. What is no
    /// UTF-8 is told as U+FFFD. With them it tells where in the stream they end.
    pub(super) fn feed(&mut self, mut bytes: &[u8], tell: &mut impl FnMut(&str, Mark)) {
        while let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
            if !self.partial.is_empty() || end > self.bound {
                self.append(&bytes[..end], tell);
                self.ended(1);
                tell(&String::from_utf8_lossy(&self.partial), self.told);
                self.partial.clear();
                bytes = &bytes[end + 1..];
            } else {
                let (block, lines) = self.whole_lines(bytes, end);
                self.ended(lines);
                tell(&String::from_utf8_lossy(&bytes[..block]), self.told);
                bytes = &bytes[block + 1..];
            }
        }
        self.append(bytes, tell);
    }

    /// Tells the last line if it had no end.
    pub(super) fn finish(&mut self, tell: &mut impl FnMut(&str, Mark)) {
        if !self.partial.is_empty() {
            // Engines keep it with an end.
            self.ended(1);
            tell(&String::from_utf8_lossy(&self.partial), self.told);
            self.partial = Vec::new();
        }
    }

    fn ended(&mut self, lines: u64) {
        self.told = Mark { lines: self.told.lines + lines, within: 0 };
    }

    /// The end of the last whole line that fits into a block, where the first line ends at `first`, and how many there are.
    fn whole_lines(&self, bytes: &[u8], first: usize) -> (usize, u64) {
        let (mut end, mut lines) = (first, 1);
        while let Some(next) = bytes[end + 1..].iter().take(BLOCK).position(|byte| *byte == b'\n') {
            if next > self.bound || end + 1 + next > BLOCK {
                break;
            }
            end += 1 + next;
            lines += 1;
        }
        (end, lines)
    }

    fn append(&mut self, mut bytes: &[u8], tell: &mut impl FnMut(&str, Mark)) {
        while self.partial.len() + bytes.len() > self.bound {
            let (fits, rest) = bytes.split_at(self.bound - self.partial.len());
            self.partial.extend_from_slice(fits);
            bytes = rest;
            let whole = whole_characters(&self.partial);
            self.told.within += whole as u64;
            tell(&String::from_utf8_lossy(&self.partial[..whole]), self.told);
            self.partial.drain(..whole);
        }
        self.partial.extend_from_slice(bytes);
    }
}

/// How many of the bytes end with a whole character; all of them when their end is no UTF-8 at all.
fn whole_characters(bytes: &[u8]) -> usize {
    for back in 1..=bytes.len().min(4) {
        let byte = bytes[bytes.len() - back];
        let needs = match byte {
            0b1100_0000..=0b1101_1111 => 2,
            0b1110_0000..=0b1110_1111 => 3,
            0b1111_0000..=0b1111_0111 => 4,
            0b1000_0000..=0b1011_1111 => continue,
            _ => 1,
        };
        return if needs > back && bytes.len() > back { bytes.len() - back } else { bytes.len() };
    }
    bytes.len()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn told(bound: usize, pieces: &[&[u8]]) -> Vec<String> {
        let mut lines = Lines::new(bound);
        let mut told = Vec::new();
        let mut tell = |block: &str, _| told.extend(block.split('\n').map(str::to_owned));
        for piece in pieces {
            lines.feed(piece, &mut tell);
        }
        lines.finish(&mut tell);
        told
    }

    #[test]
    fn lines_are_told_whole_however_they_arrive() {
        assert_eq!(told(100, &[b"a", b"b\n\nc\r\nd"]), ["ab", "", "c\r", "d"]);
        assert_eq!(told(100, &[b"\n"]), [""]);
        assert_eq!(told(100, &[b""]), [""; 0]);
    }

    #[test]
    fn a_line_longer_than_the_bound_is_told_in_pieces_without_loss() {
        assert_eq!(told(4, &[b"12345678", b"9\nab\n"]), ["1234", "5678", "9", "ab"]);
        assert_eq!(told(4, &[b"1234\n5"]), ["1234", "5"]);
    }

    #[test]
    fn pieces_end_between_characters() {
        let text = "aé€𝄞é€𝄞";
        let pieces: Vec<&[u8]> = text.as_bytes().chunks(1).collect();
        assert_eq!(told(5, &pieces).concat(), text);
        assert_eq!(told(5, &[text.as_bytes()]).concat(), text);
    }

    #[test]
    fn what_is_no_text_is_shown_as_such() {
        assert_eq!(told(100, &[b"\xff\xfe\n"]), ["\u{fffd}\u{fffd}"]);
        assert_eq!(told(4, &[&[0x80; 9]]).concat(), "\u{fffd}".repeat(9));
    }

    proptest! {
        #[test]
        fn any_cutting_tells_the_same_lines(text in "[a\n€é]{0,60}", cuts in prop::collection::vec(0_usize..120, 0..8)) {
            let bytes = text.as_bytes();
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(bytes.len())).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let pieces: Vec<&[u8]> = cuts.windows(2).map(|pair| &bytes[pair[0]..pair[1]]).collect();
            let expected: Vec<String> = text.lines().map(str::to_owned).collect();
            prop_assert_eq!(told(1000, &pieces), expected);
            prop_assert_eq!(told(7, &pieces).concat(), text.replace('\n', ""));
        }

        #[test]
        fn whoever_stops_anywhere_and_goes_on_tells_each_line_once(
            text in "[a\n€é]{0,60}", bound in 4_usize..20, cut in 0_usize..120, again in 0_usize..120, known in 0_usize..40,
        ) {
            let bytes = text.as_bytes();
            // An earlier process read up to the cut, and only the first of what it told arrived.
            let (mut before, mut reached) = (Vec::new(), Mark::default());
            Lines::new(bound).feed(&bytes[..cut.min(bytes.len())], &mut |block, mark| {
                if before.len() < known {
                    before.extend(block.split('\n').map(str::to_owned));
                    reached = mark;
                }
            });
            let mut skip = Skip::to(reached);
            let mut lines = Lines::at(bound, reached);
            let mut tell = |block: &str, _| before.extend(block.split('\n').map(str::to_owned));
            let again = again.min(bytes.len());
            for piece in [&bytes[..again], &bytes[again..]] {
                lines.feed(&piece[skip.pass(piece)..], &mut tell);
            }
            lines.finish(&mut tell);
            prop_assert_eq!(before, told(bound, &[bytes]));
        }
    }
}
