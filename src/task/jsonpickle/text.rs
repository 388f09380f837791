//! Python's `str` and `repr` of a value, for arguments that are turned to text before a container gets them.

use std::fmt::Write as _;

use super::payload::{Date, DateTime, Offset, Shift, Time};
use super::zone::Zone;
use super::{Document, Node, Object};
use crate::task::python::{number_repr, text_repr};

/// How much one value may unfold to: shared objects are written out at each mention, so a small document can be a huge text.
const MOST_BYTES: usize = 1 << 20;
/// Lists and maps inside each other, references followed.
const MOST_DEPTH: usize = 64;

/// Why a value has no text here.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoText {
    /// It is or holds something whose text only its class knows.
    #[error("{0} has no text here")]
    Kind(String),
    /// It holds a lone surrogate.
    #[error("it holds a lone surrogate, which UTF-8 cannot express")]
    Surrogate,
    /// Its text is larger or deeper than allowed.
    #[error("its text is longer than {MOST_BYTES} bytes or nested deeper than {MOST_DEPTH} levels")]
    Large,
}

impl Document {
    /// `str(value)` as Python prints it.
    pub fn python_str(&self, node: &Node) -> Result<String, NoText> {
        if let Some(text) = self.plain_text(node) {
            return Ok(text);
        }
        let mut printer = Printer { document: self, open: Vec::new(), out: String::new() };
        printer.repr(node)?;
        Ok(printer.out)
    }

    /// The text of a value that is one: a text, path, id, number of a decimal, or time.
    pub fn plain_text(&self, node: &Node) -> Option<String> {
        match node {
            Node::Text(text) => return Some(text.clone()),
            Node::BigInteger(digits) => return Some(digits.clone()),
            Node::NonFinite(number) => return Some(number.as_python().to_owned()),
            _ => {}
        }
        match self.shared(node)? {
            // Without its offset it would be another time.
            Object::DateTime(time) => (time.time.offset != Offset::Foreign).then(|| time.isoformat(' ')),
            Object::Date(date) => Some(date.to_string()),
            Object::Time(time) => (time.offset != Offset::Foreign).then(|| time.to_string()),
            Object::ObjectId(bytes) => Some(hexadecimal(bytes)),
            Object::Uuid(digits) => Some(uuid(digits)),
            Object::Reduce(parts) => self.reduced_text(parts),
            Object::List(_) | Object::Dict(_) | Object::Instance(_) | Object::Pattern(_) => None,
        }
    }

    fn reduced_text(&self, parts: &[Node]) -> Option<String> {
        match self.construction(parts)? {
            ("decimal.Decimal", [Node::Text(digits)]) => Some(digits.clone()),
            ("datetime.timedelta", arguments) => {
                super::TimeDelta::from_arguments(arguments).map(|delta| delta.to_string())
            }
            ("fractions.Fraction", [Node::Number(above), Node::Number(below)]) => {
                Some(if below.as_i64() == Some(1) { above.to_string() } else { format!("{above}/{below}") })
            }
            ("datetime.timezone", [_, Node::Text(name)]) => Some(name.clone()),
            ("datetime.timezone", _) => match Zone::reduced(self, parts)? {
                Zone::Fixed(delta) if delta.whole_seconds() == 0 => Some("UTC".to_owned()),
                Zone::Fixed(delta) => Some(format!("UTC{}", Shift(delta))),
                Zone::Naive | Zone::Named(_) | Zone::Foreign => None,
            },
            (class, arguments) if class.starts_with("pathlib.") => {
                let parts: Option<Vec<&str>> = arguments.iter().map(Node::text).collect();
                let joined = parts?.join("/");
                // Python's empty path.
                let joined = if joined.is_empty() { ".".to_owned() } else { joined };
                Some(joined.strip_prefix("//").map_or(joined.clone(), |rest| format!("/{rest}")))
            }
            _ => None,
        }
    }
}

/// Lower-case hexadecimal digits.
pub(crate) fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut out, byte| {
        let _ = write!(out, "{byte:02x}");
        out
    })
}

fn uuid(digits: &str) -> String {
    match (digits.len(), digits.is_ascii()) {
        (32, true) => {
            [&digits[..8], &digits[8..12], &digits[12..16], &digits[16..20], &digits[20..]].join("-")
        }
        _ => digits.to_owned(),
    }
}

struct Printer<'a> {
    document: &'a Document,
    /// The objects being printed: one met again is printed as `[...]`.
    open: Vec<usize>,
    out: String,
}

impl Printer<'_> {
    fn repr(&mut self, node: &Node) -> Result<(), NoText> {
        if self.out.len() > MOST_BYTES || self.open.len() > MOST_DEPTH {
            return Err(NoText::Large);
        }
        match node {
            Node::Null => self.out.push_str("None"),
            Node::Bool(truth) => self.out.push_str(if *truth { "True" } else { "False" }),
            Node::Number(number) => number_repr(number, &mut self.out),
            Node::BigInteger(digits) => self.out.push_str(digits),
            Node::NonFinite(number) => self.out.push_str(number.as_python()),
            Node::Text(text) => text_repr(text, &mut self.out),
            Node::Surrogates(_) => return Err(NoText::Surrogate),
            Node::Tuple(items) => {
                self.sequence("(", items, if items.len() == 1 { ",)" } else { ")" })?;
            }
            Node::Set(items) if items.is_empty() => self.out.push_str("set()"),
            Node::Set(items) => self.sequence("{", items, "}")?,
            Node::Bytes(bytes) => self.bytes(bytes),
            Node::Type(name) => {
                let name = name.strip_prefix("builtins.").unwrap_or(name);
                let _ = write!(self.out, "<class '{name}'>");
            }
            Node::Function(_) | Node::Unresolved => return Err(NoText::Kind(self.document.kind(node))),
            Node::Shared(index) => self.shared(*index, node)?,
        }
        Ok(())
    }

    fn shared(&mut self, index: usize, node: &Node) -> Result<(), NoText> {
        let document = self.document;
        let object = document.object(index);
        if self.open.contains(&index) {
            self.out.push_str(if matches!(object, Object::Dict(_)) { "{...}" } else { "[...]" });
            return Ok(());
        }
        self.open.push(index);
        match object {
            Object::List(items) => self.sequence("[", items, "]")?,
            Object::Dict(entries) => {
                self.out.push('{');
                for (n, (key, value)) in entries.iter().enumerate() {
                    self.out.push_str(if n == 0 { "" } else { ", " });
                    self.repr(key)?;
                    self.out.push_str(": ");
                    self.repr(value)?;
                }
                self.out.push('}');
            }
            Object::DateTime(DateTime { time: Time { offset: Offset::Foreign, .. }, .. })
            | Object::Time(Time { offset: Offset::Foreign, .. }) => {
                return Err(NoText::Kind("a time in a zone that is not known here".to_owned()));
            }
            Object::DateTime(time) => self.out.push_str(&datetime_repr(time)),
            Object::Date(Date { year, month, day }) => {
                let _ = write!(self.out, "datetime.date({year}, {month}, {day})");
            }
            Object::Time(time) => {
                let _ = write!(self.out, "datetime.time({})", clock_repr(time));
            }
            Object::ObjectId(bytes) => {
                let _ = write!(self.out, "ObjectId('{}')", hexadecimal(bytes));
            }
            Object::Uuid(digits) => {
                let _ = write!(self.out, "UUID('{}')", uuid(digits));
            }
            Object::Pattern(text) => {
                self.out.push_str("re.compile(");
                text_repr(text, &mut self.out);
                self.out.push(')');
            }
            Object::Reduce(parts) => self.reduced(parts, node)?,
            // jsonpickle loses what it held.
            Object::Instance(instance) if instance.class == "builtins.bytearray" => {
                self.out.push_str("bytearray(b'')");
            }
            Object::Instance(_) => return Err(NoText::Kind(document.kind(node))),
        }
        self.open.pop();
        Ok(())
    }

    fn reduced(&mut self, parts: &[Node], node: &Node) -> Result<(), NoText> {
        match self.document.construction(parts) {
            Some(("decimal.Decimal", [Node::Text(digits)])) => {
                let _ = write!(self.out, "Decimal('{digits}')");
            }
            Some(("fractions.Fraction", [Node::Number(above), Node::Number(below)])) => {
                let _ = write!(self.out, "Fraction({above}, {below})");
            }
            Some(("builtins.frozenset", [items])) => {
                let items = self.document.items(items).unwrap_or_default();
                if items.is_empty() {
                    self.out.push_str("frozenset()");
                } else {
                    self.sequence("frozenset({", items, "})")?;
                }
            }
            Some((class, _)) if class.starts_with("pathlib.") => {
                let text = self.document.reduced_text(parts).unwrap_or_default();
                let _ = write!(self.out, "{}(", class.trim_start_matches("pathlib."));
                text_repr(&text, &mut self.out);
                self.out.push(')');
            }
            _ => return Err(NoText::Kind(self.document.kind(node))),
        }
        Ok(())
    }

    fn sequence(&mut self, start: &str, items: &[Node], end: &str) -> Result<(), NoText> {
        self.out.push_str(start);
        for (n, item) in items.iter().enumerate() {
            self.out.push_str(if n == 0 { "" } else { ", " });
            self.repr(item)?;
        }
        self.out.push_str(end);
        Ok(())
    }

    fn bytes(&mut self, bytes: &[u8]) {
        let quote = if bytes.contains(&b'\'') && !bytes.contains(&b'"') { '"' } else { '\'' };
        self.out.push('b');
        self.out.push(quote);
        for byte in bytes {
            match *byte {
                b'\\' => self.out.push_str("\\\\"),
                b'\n' => self.out.push_str("\\n"),
                b'\r' => self.out.push_str("\\r"),
                b'\t' => self.out.push_str("\\t"),
                c if char::from(c) == quote => {
                    self.out.push('\\');
                    self.out.push(quote);
                }
                c @ 0x20..=0x7e => self.out.push(char::from(c)),
                c => {
                    let _ = write!(self.out, "\\x{c:02x}");
                }
            }
        }
        self.out.push(quote);
    }
}

fn datetime_repr(time: &DateTime) -> String {
    let Date { year, month, day } = time.date;
    format!("datetime.datetime({year}, {month}, {day}, {})", clock_repr(&time.time))
}

fn clock_repr(time: &Time) -> String {
    let mut out = format!("{}, {}", time.hour, time.minute);
    if time.second != 0 || time.microsecond != 0 {
        let _ = write!(out, ", {}", time.second);
    }
    if time.microsecond != 0 {
        let _ = write!(out, ", {}", time.microsecond);
    }
    match time.offset {
        Offset::Naive | Offset::Foreign => {}
        Offset::Fixed(delta) if delta.whole_seconds() == 0 => out.push_str(", tzinfo=datetime.timezone.utc"),
        Offset::Fixed(delta) => {
            let _ = write!(out, ", tzinfo=datetime.timezone(datetime.timedelta(");
            let days = if delta.days == 0 { String::new() } else { format!("days={}, ", delta.days) };
            let _ = write!(out, "{days}seconds={}))", delta.seconds);
        }
    }
    out
}
