//! The `<filter-…>` elements in the standard output of Slicer's command line modules: they become progress and leave the
//! log, as `slicer_cli_web` has it (`girder_worker_plugin/cli_progress.py`). Called by `attach`.
//!
//! # Decisions
//! - What an element is depends on the bytes alone, never on how they were cut into pieces. So the same output, read again
//!   by a later process, gives the same text.
//! - At most [`HELD`] bytes wait for the end of an element. One that is longer is no element: it is text, told whole.

use crate::events::Progress;

/// The most bytes that wait for the end of an element.
const HELD: usize = 64 << 10;
/// What a module is called until it says so.
const NAMELESS: &str = "Unknown";

/// Takes elements out of one stream.
#[derive(Debug)]
pub(super) struct Elements {
    place: Place,
    /// Inside of which element with elements in it.
    block: Option<Block>,
    /// What belongs to an element if its end comes.
    held: Vec<u8>,
    /// Where in `held` the tag begins that is being read.
    tag: usize,
    name: String,
    comment: String,
    current: Option<f64>,
}

/// A part of the stream.
#[derive(Debug, PartialEq)]
pub(super) enum Piece<'a> {
    /// What is no element, in order.
    Text(&'a [u8]),
    /// How far the module came.
    Progress(Progress),
}

/// Where in the stream the next byte stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// Outside of every element, or between those in a block.
    Text,
    /// Behind an element, whose white space goes with it.
    Space,
    /// In what may be a tag that opens an element, or closes the block.
    Opening,
    /// In an element's content, which begins here in `held`.
    Content(Leaf, usize),
    /// In what may be the tag that closes it; where its content begins.
    Closing(Leaf, usize),
}

/// An element with elements in it. All in it leaves the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Block {
    Start,
    End,
}

/// An element with text in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Leaf {
    Time,
    StageProgress,
    Progress,
    Name,
    Comment,
}

/// What an opening or closing tag does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tag {
    Opens(Block),
    Closes,
    Begins(Leaf),
}

/// How the bytes of a tag read so far compare with those that may stand there.
enum Reading {
    Whole(Tag),
    /// It may become one.
    Part,
    Other,
}

impl Block {
    const ALL: [Self; 2] = [Self::Start, Self::End];

    fn tags(self) -> [&'static str; 2] {
        match self {
            Self::Start => ["<filter-start>", "</filter-start>"],
            Self::End => ["<filter-end>", "</filter-end>"],
        }
    }
}

impl Leaf {
    const ALL: [Self; 5] = [Self::Time, Self::StageProgress, Self::Progress, Self::Name, Self::Comment];

    fn tags(self) -> [&'static str; 2] {
        match self {
            Self::Time => ["<filter-time>", "</filter-time>"],
            Self::StageProgress => ["<filter-stage-progress>", "</filter-stage-progress>"],
            Self::Progress => ["<filter-progress>", "</filter-progress>"],
            Self::Name => ["<filter-name>", "</filter-name>"],
            Self::Comment => ["<filter-comment>", "</filter-comment>"],
        }
    }
}

impl Elements {
    /// For a stream from its beginning.
    pub(super) fn new() -> Self {
        Self {
            place: Place::Text,
            block: None,
            held: Vec::new(),
            tag: 0,
            name: NAMELESS.to_owned(),
            comment: String::new(),
            current: None,
        }
    }

    /// Takes the next bytes and tells what is certain by now.
    pub(super) fn feed(&mut self, mut bytes: &[u8], tell: &mut impl FnMut(Piece<'_>)) {
        while !bytes.is_empty() {
            let taken = match self.place {
                Place::Text => self.text(bytes, tell),
                Place::Space => self.space(bytes),
                Place::Content(leaf, from) => self.content(bytes, leaf, from),
                Place::Opening => usize::from(self.opening(bytes[0], tell)),
                Place::Closing(leaf, from) => usize::from(self.closing(bytes[0], (leaf, from), tell)),
            };
            bytes = &bytes[taken..];
            if self.held.len() >= HELD {
                self.give_up(tell);
            }
        }
    }

    /// Tells what waited for the end of an element that has none.
    pub(super) fn finish(&mut self, tell: &mut impl FnMut(Piece<'_>)) {
        self.give_up(tell);
    }

    /// All that waits is text, and so is what follows.
    fn give_up(&mut self, tell: &mut impl FnMut(Piece<'_>)) {
        if !self.held.is_empty() {
            tell(Piece::Text(&self.held));
        }
        self.held = Vec::new();
        (self.place, self.block, self.tag) = (Place::Text, None, 0);
    }

    /// Up to what may be a tag.
    fn text(&mut self, bytes: &[u8], tell: &mut impl FnMut(Piece<'_>)) -> usize {
        let end = bytes.iter().position(|byte| *byte == b'<').unwrap_or(bytes.len());
        let taken = if self.block.is_some() { self.hold(&bytes[..end]) } else { end };
        if self.block.is_none() && end > 0 {
            tell(Piece::Text(&bytes[..end]));
        }
        if taken == end && end < bytes.len() {
            (self.place, self.tag) = (Place::Opening, self.held.len());
        }
        taken
    }

    fn space(&mut self, bytes: &[u8]) -> usize {
        let is_space = |byte: &u8| byte.is_ascii_whitespace() || *byte == b'\x0b';
        let end = bytes.iter().position(|byte| !is_space(byte));
        if end.is_some() {
            self.place = Place::Text;
        }
        end.unwrap_or(bytes.len())
    }

    fn content(&mut self, bytes: &[u8], leaf: Leaf, from: usize) -> usize {
        let end = bytes.iter().position(|byte| *byte == b'<').unwrap_or(bytes.len());
        let taken = self.hold(&bytes[..end]);
        if taken == end && end < bytes.len() {
            (self.place, self.tag) = (Place::Closing(leaf, from), self.held.len());
        }
        taken
    }

    /// Holds as many of the bytes as may be held.
    fn hold(&mut self, bytes: &[u8]) -> usize {
        let fits = bytes.len().min(HELD.saturating_sub(self.held.len()));
        self.held.extend_from_slice(&bytes[..fits]);
        fits
    }

    /// The next byte of what may be an opening tag. Whether it was taken.
    fn opening(&mut self, byte: u8, tell: &mut impl FnMut(Piece<'_>)) -> bool {
        self.held.push(byte);
        match self.read() {
            Reading::Part => true,
            Reading::Whole(tag) => {
                self.place = match tag {
                    Tag::Begins(leaf) => Place::Content(leaf, self.held.len()),
                    Tag::Opens(block) => {
                        self.block = Some(block);
                        Place::Text
                    }
                    Tag::Closes => {
                        self.block = None;
                        self.held.clear();
                        Place::Space
                    }
                };
                true
            }
            Reading::Other => {
                // It may be the first of the next tag.
                self.held.pop();
                self.no_tag(tell);
                false
            }
        }
    }

    /// The next byte of what may be the tag that closes an element. Whether it was taken.
    fn closing(&mut self, byte: u8, leaf: (Leaf, usize), tell: &mut impl FnMut(Piece<'_>)) -> bool {
        let (leaf, from) = leaf;
        self.held.push(byte);
        let tag = leaf.tags()[1].as_bytes();
        let read = &self.held[self.tag..];
        if read == tag {
            let content = self.held[from..self.tag].to_vec();
            self.learn(leaf, &content, tell);
            if self.block.is_some() {
                self.place = Place::Text;
            } else {
                self.held.clear();
                self.place = Place::Space;
            }
            return true;
        }
        if tag.starts_with(read) {
            return true;
        }
        // The element is none, but another may begin where its end should have.
        self.held.pop();
        if self.block.is_none() {
            tell(Piece::Text(&self.held[..self.tag]));
            self.held.drain(..self.tag);
            self.tag = 0;
        }
        self.place = Place::Opening;
        if matches!(self.read(), Reading::Other) {
            self.no_tag(tell);
        }
        false
    }

    /// What was read of a tag is none.
    fn no_tag(&mut self, tell: &mut impl FnMut(Piece<'_>)) {
        if self.block.is_none() && !self.held.is_empty() {
            tell(Piece::Text(&self.held));
            self.held.clear();
        }
        self.place = Place::Text;
    }

    fn read(&self) -> Reading {
        let read = &self.held[self.tag..];
        let opening = Block::ALL.iter().map(|block| (block.tags()[0], Tag::Opens(*block)));
        let opening = opening.filter(|_| self.block.is_none());
        let closing = self.block.iter().map(|block| (block.tags()[1], Tag::Closes));
        let leaves = Leaf::ALL.iter().map(|leaf| (leaf.tags()[0], Tag::Begins(*leaf)));
        let mut reading = Reading::Other;
        for (tag, meaning) in opening.chain(closing).chain(leaves) {
            if tag.as_bytes() == read {
                return Reading::Whole(meaning);
            }
            if tag.as_bytes().starts_with(read) {
                reading = Reading::Part;
            }
        }
        reading
    }

    /// An element came to its end. A new name or comment is told at once, if there is progress to tell it with.
    fn learn(&mut self, leaf: Leaf, content: &[u8], tell: &mut impl FnMut(Piece<'_>)) {
        let text = String::from_utf8_lossy(content);
        match leaf {
            Leaf::Time | Leaf::StageProgress => return,
            Leaf::Progress => match text.trim().parse::<f64>() {
                Ok(current) if current.is_finite() => self.current = Some(current),
                Ok(_) | Err(_) => return,
            },
            Leaf::Name => self.name = unescaped(&text),
            Leaf::Comment => self.comment = unescaped(&text),
        }
        if let Some(current) = self.current {
            let message = if self.comment.is_empty() { &self.name } else { &self.comment };
            tell(Piece::Progress(Progress {
                message: Some(message.clone()),
                current: Some(current),
                total: Some(1.0),
            }));
        }
    }
}

/// What Python's `xml.sax.saxutils.unescape` makes of it, trimmed.
fn unescaped(text: &str) -> String {
    text.replace("&gt;", ">").replace("&lt;", "<").replace("&amp;", "&").trim().to_owned()
}

#[cfg(test)]
#[path = "slicer_tests.rs"]
mod tests;
