//! The parser: one pass, bounded in bytes, depth and values.

use std::collections::HashSet;

use serde_json::Number;

use super::{Json, JsonError, NonFinite};
use crate::task::envelope::Limits;

/// Reads one document from `bytes`.
pub fn parse(bytes: &[u8], limits: &Limits) -> Result<Json, JsonError> {
    if bytes.len() > limits.max_bytes {
        return Err(JsonError { at: 0, reason: format!("{} bytes are more than allowed", bytes.len()) });
    }
    let text = std::str::from_utf8(bytes)
        .map_err(|error| JsonError { at: error.valid_up_to(), reason: "it is no UTF-8".to_owned() })?;
    let mut parser = Parser { text, at: 0, nodes: limits.max_nodes, limits };
    let value = parser.value(limits.max_depth)?;
    parser.blanks();
    if parser.at < text.len() {
        return Err(parser.error("something follows the end of the document"));
    }
    Ok(value)
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
    nodes: usize,
    limits: &'a Limits,
}

impl Parser<'_> {
    /// Python refuses longer ones when it reads them (`sys.set_int_max_str_digits`).
    const MOST_DIGITS: usize = 4300;

    fn error(&self, reason: impl Into<String>) -> JsonError {
        JsonError { at: self.at, reason: reason.into() }
    }
    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }
    fn blanks(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }
    fn take(&mut self, word: &str) -> bool {
        let found = self.text.as_bytes()[self.at..].starts_with(word.as_bytes());
        if found {
            self.at += word.len();
        }
        found
    }

    fn value(&mut self, depth: usize) -> Result<Json, JsonError> {
        self.nodes = self
            .nodes
            .checked_sub(1)
            .ok_or_else(|| self.error(format!("more than {} values", self.limits.max_nodes)))?;
        self.blanks();
        match self.peek() {
            None => Err(self.error("a value is missing: the document ends")),
            Some(b'{') => self.map(self.deeper(depth)?),
            Some(b'[') => self.list(self.deeper(depth)?),
            Some(b'"') => Ok(match self.string()? {
                Ok(text) => Json::Text(text),
                Err(units) => Json::Surrogates(units),
            }),
            Some(b'-' | b'0'..=b'9') if !self.text.as_bytes()[self.at..].starts_with(b"-I") => self.number(),
            Some(_) if self.take("null") => Ok(Json::Null),
            Some(_) if self.take("true") => Ok(Json::Bool(true)),
            Some(_) if self.take("false") => Ok(Json::Bool(false)),
            Some(_) if self.take("NaN") => Ok(Json::NonFinite(NonFinite::Nan)),
            Some(_) if self.take("Infinity") => Ok(Json::NonFinite(NonFinite::Infinity)),
            Some(_) if self.take("-Infinity") => Ok(Json::NonFinite(NonFinite::NegativeInfinity)),
            Some(_) => Err(self.error("no JSON value starts like this")),
        }
    }

    fn deeper(&self, depth: usize) -> Result<usize, JsonError> {
        depth
            .checked_sub(1)
            .ok_or_else(|| self.error(format!("nested deeper than {} levels", self.limits.max_depth)))
    }

    fn list(&mut self, depth: usize) -> Result<Json, JsonError> {
        self.at += 1;
        let mut items = Vec::new();
        self.blanks();
        if self.take("]") {
            return Ok(Json::List(items));
        }
        loop {
            items.push(self.value(depth)?);
            self.blanks();
            if self.take("]") {
                return Ok(Json::List(items));
            }
            if !self.take(",") {
                return Err(self.error("a list goes on with `,` or ends with `]`"));
            }
        }
    }

    fn map(&mut self, depth: usize) -> Result<Json, JsonError> {
        self.at += 1;
        let mut entries: Vec<(String, Json)> = Vec::new();
        self.blanks();
        if self.take("}") {
            return Ok(Json::Map(entries));
        }
        loop {
            self.blanks();
            if self.peek() != Some(b'"') {
                return Err(self.error("a map's key is a text in double quotes"));
            }
            let key = self.string()?.map_err(|_| self.error("a key holds a lone surrogate"))?;
            self.blanks();
            if !self.take(":") {
                return Err(self.error("`:` stands between key and value"));
            }
            entries.push((key, self.value(depth)?));
            self.blanks();
            if self.take("}") {
                break;
            }
            if !self.take(",") {
                return Err(self.error("a map goes on with `,` or ends with `}`"));
            }
        }
        let mut seen = HashSet::with_capacity(entries.len());
        match entries.iter().find(|(key, _)| !seen.insert(key.as_str())) {
            Some((key, _)) => Err(self.error(format!("the key {key:?} stands twice in one map"))),
            None => Ok(Json::Map(entries)),
        }
    }

    /// A text, or its UTF-16 when it holds lone surrogates.
    fn string(&mut self) -> Result<Result<String, Vec<u16>>, JsonError> {
        self.at += 1;
        let mut out = String::new();
        let mut units: Option<Vec<u16>> = None;
        loop {
            let rest = &self.text.as_bytes()[self.at..];
            let plain = rest.iter().position(|b| matches!(b, b'"' | b'\\' | 0..=0x1f));
            let plain = plain.ok_or_else(|| self.error("a text does not end"))?;
            let piece = &self.text[self.at..self.at + plain];
            match &mut units {
                None => out.push_str(piece),
                Some(units) => units.extend(piece.encode_utf16()),
            }
            self.at += plain;
            match rest[plain] {
                b'"' => {
                    self.at += 1;
                    return Ok(units.map_or(Ok(out), |units| String::from_utf16(&units).map_err(|_| units)));
                }
                b'\\' => match (self.escape()?, &mut units) {
                    (Escape::Char(c), None) => out.push(c),
                    (Escape::Char(c), Some(units)) => units.extend(c.encode_utf16(&mut [0; 2]).iter()),
                    (Escape::Unit(unit), None) => {
                        let mut all: Vec<u16> = std::mem::take(&mut out).encode_utf16().collect();
                        all.push(unit);
                        units = Some(all);
                    }
                    (Escape::Unit(unit), Some(units)) => units.push(unit),
                },
                _ => return Err(self.error("a control character stands in a text without an escape")),
            }
        }
    }

    fn escape(&mut self) -> Result<Escape, JsonError> {
        self.at += 1;
        let c = match self.peek() {
            Some(b'"') => '"',
            Some(b'\\') => '\\',
            Some(b'/') => '/',
            Some(b'b') => '\u{8}',
            Some(b'f') => '\u{c}',
            Some(b'n') => '\n',
            Some(b'r') => '\r',
            Some(b't') => '\t',
            Some(b'u') => {
                let digits = self.text.as_bytes().get(self.at + 1..self.at + 5);
                let unit = digits
                    .filter(|digits| digits.iter().all(u8::is_ascii_hexdigit))
                    .and_then(|digits| std::str::from_utf8(digits).ok())
                    .and_then(|digits| u16::from_str_radix(digits, 16).ok())
                    .ok_or_else(|| self.error("`\\u` is followed by four hexadecimal digits"))?;
                self.at += 5;
                return Ok(char::from_u32(u32::from(unit)).map_or(Escape::Unit(unit), Escape::Char));
            }
            _ => return Err(self.error("no escape is written like this")),
        };
        self.at += 1;
        Ok(Escape::Char(c))
    }

    fn number(&mut self) -> Result<Json, JsonError> {
        let start = self.at;
        self.take("-");
        let first = self.at;
        self.digits()?;
        if self.at - first > 1 && self.text.as_bytes()[first] == b'0' {
            return Err(self.error("a number does not start with 0"));
        }
        let integer_end = self.at;
        if self.take(".") {
            self.digits()?;
        }
        if matches!(self.peek(), Some(b'e' | b'E')) {
            self.at += 1;
            if matches!(self.peek(), Some(b'+' | b'-')) {
                self.at += 1;
            }
            self.digits()?;
        }
        let text = &self.text[start..self.at];
        if self.at > integer_end {
            let float: f64 = text.parse().map_err(|_| self.error("it is no number"))?;
            return Ok(match Number::from_f64(float) {
                Some(number) => Json::Number(number),
                None if float < 0.0 => Json::NonFinite(NonFinite::NegativeInfinity),
                None => Json::NonFinite(NonFinite::Infinity),
            });
        }
        if let Ok(number) = text.parse::<i64>() {
            return Ok(Json::Number(number.into()));
        }
        if let Ok(number) = text.parse::<u64>() {
            return Ok(Json::Number(number.into()));
        }
        if integer_end - first > Self::MOST_DIGITS {
            return Err(self.error(format!("an integer has more than {} digits", Self::MOST_DIGITS)));
        }
        Ok(Json::BigInteger(text.to_owned()))
    }

    fn digits(&mut self) -> Result<(), JsonError> {
        let start = self.at;
        while matches!(self.peek(), Some(b'0'..=b'9')) {
            self.at += 1;
        }
        if self.at == start { Err(self.error("a digit is missing")) } else { Ok(()) }
    }
}

enum Escape {
    Char(char),
    Unit(u16),
}
