//! Reads JSON or MessagePack into one kind of value under limits, before anything looks at its meaning.
//!
//! A message is hostile until checked: depth and node count are bounded while reading, so that neither the stack nor
//! the memory of the worker depends on what a producer sends. A map that names a key twice is refused, because two
//! readers of it would disagree.

use std::cell::Cell;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// What one message may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of the (decompressed) body.
    pub max_bytes: usize,
    /// Lists and maps inside each other.
    pub max_depth: usize,
    /// Values in all.
    pub max_nodes: usize,
}

impl Default for Limits {
    /// 4 MiB, 64 deep, 250,000 values.
    fn default() -> Self {
        Self { max_bytes: 4 << 20, max_depth: 64, max_nodes: 250_000 }
    }
}

/// Reads one value from `deserializer` under `limits`.
pub fn read<'de, D: Deserializer<'de>>(deserializer: D, limits: &Limits) -> Result<Value, D::Error> {
    let nodes = Cell::new(limits.max_nodes);
    Seed { depth: limits.max_depth, nodes: &nodes, limits }.deserialize(deserializer)
}

#[derive(Clone, Copy)]
struct Seed<'a> {
    depth: usize,
    nodes: &'a Cell<usize>,
    limits: &'a Limits,
}

impl<'a> Seed<'a> {
    fn count<E: Error>(self) -> Result<(), E> {
        let left = self.nodes.get();
        if left == 0 {
            return Err(E::custom(format_args!("more than {} values", self.limits.max_nodes)));
        }
        self.nodes.set(left - 1);
        Ok(())
    }
    fn deeper<E: Error>(self) -> Result<Seed<'a>, E> {
        match self.depth.checked_sub(1) {
            Some(depth) => Ok(Seed { depth, ..self }),
            None => Err(E::custom(format_args!("nested deeper than {} levels", self.limits.max_depth))),
        }
    }
}

impl<'de> DeserializeSeed<'de> for Seed<'_> {
    type Value = Value;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        self.count()?;
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Seed<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value that JSON can express")
    }
    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }
    fn visit_none<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }
    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
    fn visit_bool<E: Error>(self, truth: bool) -> Result<Value, E> {
        Ok(Value::Bool(truth))
    }
    fn visit_i64<E: Error>(self, number: i64) -> Result<Value, E> {
        Ok(Value::Number(number.into()))
    }
    fn visit_u64<E: Error>(self, number: u64) -> Result<Value, E> {
        Ok(Value::Number(number.into()))
    }
    fn visit_f64<E: Error>(self, number: f64) -> Result<Value, E> {
        Number::from_f64(number)
            .map(Value::Number)
            .ok_or_else(|| E::custom(format_args!("the number {number} is not finite")))
    }
    fn visit_str<E: Error>(self, text: &str) -> Result<Value, E> {
        Ok(Value::String(text.to_owned()))
    }
    fn visit_string<E: Error>(self, text: String) -> Result<Value, E> {
        Ok(Value::String(text))
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let seed = self.deeper()?;
        let mut list = Vec::new();
        while let Some(item) = items.next_element_seed(seed)? {
            list.push(item);
        }
        Ok(Value::Array(list))
    }
    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let seed = self.deeper()?;
        let mut map = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            let value = entries.next_value_seed(seed)?;
            if map.contains_key(&key) {
                return Err(A::Error::custom(format_args!("the key {key:?} stands twice in one map")));
            }
            map.insert(key, value);
        }
        Ok(Value::Object(map))
    }
}
