//! What a container writes to a progress pipe: nothing panics, no line is longer than its bound, and how the bytes are
//! cut changes nothing.

#![no_main]

use libfuzzer_sys::fuzz_target;
use longshore::events::Progress;
use longshore::pipeline::lines::{Known, Lines, merge};

const LONGEST: usize = 64;

fn told(pieces: &[&[u8]]) -> (Vec<Vec<u8>>, Progress, Option<String>) {
    let (mut lines, mut progress, mut told) = (Lines::new(LONGEST), Progress::default(), Vec::new());
    let mut tell = |line: &[u8]| {
        assert!(line.len() <= LONGEST);
        let known = merge(&mut progress, line);
        if known != Known::Blank {
            told.push(line.to_owned());
        }
        known
    };
    for piece in pieces {
        lines.feed(piece, &mut tell);
    }
    lines.end(&mut tell);
    let complaint = lines.complaint("p");
    (told, progress, complaint)
}

fuzz_target!(|data: &[u8]| {
    let Some((cut, data)) = data.split_first() else { return };
    let (first, rest) = data.split_at(usize::from(*cut).min(data.len()));
    let single: Vec<&[u8]> = data.chunks(1).collect();
    let whole = told(&[data]);
    assert_eq!(whole, told(&[first, rest]));
    assert_eq!(whole, told(&single));
});
