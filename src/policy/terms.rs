//! The kinds of value that policy settings have: patterns of names, limits, networks.
//!
//! Each is checked when the settings are read, so that a wrong one is told with its place in the file.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;

use globset::{GlobBuilder, GlobSet, GlobSetBuilder};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A settings value that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{value:?} cannot be used here: {reason}")]
pub struct TermError {
    /// What was written.
    pub value: String,
    /// What is wrong and what to write instead.
    pub reason: String,
}

impl TermError {
    pub(super) fn new(value: impl Into<String>, reason: impl Into<String>) -> Self {
        Self { value: value.into(), reason: reason.into() }
    }
}

/// Names, each with `*` for any part of it: `["runc", "kata-*"]`. `["*"]` is any name, `[]` none.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(try_from = "Vec<String>", into = "Vec<String>")]
pub struct Names {
    texts: Vec<String>,
    set: GlobSet,
}

impl Names {
    /// Whether one of the patterns is `name`'s.
    pub fn matches(&self, name: &str) -> bool {
        self.set.is_match(name)
    }
    /// Whether every name matches.
    pub fn is_any(&self) -> bool {
        self.texts.iter().any(|text| text == "*")
    }
    /// The patterns as they were written.
    pub fn texts(&self) -> &[String] {
        &self.texts
    }
}

impl TryFrom<Vec<String>> for Names {
    type Error = TermError;
    fn try_from(texts: Vec<String>) -> Result<Self, TermError> {
        let mut set = GlobSetBuilder::new();
        for text in &texts {
            set.add(glob(text)?);
        }
        let set = set.build().map_err(|error| TermError::new(texts.join(", "), error.to_string()))?;
        Ok(Self { texts, set })
    }
}

/// Every `*` crosses slashes: these are names, not paths.
fn glob(text: &str) -> Result<globset::Glob, TermError> {
    GlobBuilder::new(text)
        .literal_separator(false)
        .backslash_escape(true)
        .build()
        .map_err(|error| TermError::new(text, format!("it is no pattern: {}", error.kind())))
}

impl From<Names> for Vec<String> {
    fn from(names: Names) -> Self {
        names.texts
    }
}

impl PartialEq for Names {
    fn eq(&self, other: &Self) -> bool {
        self.texts == other.texts
    }
}

/// The most of something: an amount, `"machine"` for what this host has, or `"none"` for no limit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Limit<T> {
    /// No limit.
    Unlimited,
    /// What this host has.
    Machine,
    /// So much.
    At(T),
}

impl<T: Copy> Limit<T> {
    /// The amount, where `machine` is this host's.
    pub fn amount(self, machine: Option<T>) -> Option<T> {
        match self {
            Self::Unlimited => None,
            Self::Machine => machine,
            Self::At(amount) => Some(amount),
        }
    }
}

impl<T: Serialize> Serialize for Limit<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Unlimited => serializer.serialize_str("none"),
            Self::Machine => serializer.serialize_str("machine"),
            Self::At(amount) => amount.serialize(serializer),
        }
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Limit<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // Through a JSON value, because the amount decides itself whether it is a text or a number.
        let value = serde_json::Value::deserialize(deserializer)?;
        match value.as_str() {
            Some("none") => Ok(Self::Unlimited),
            Some("machine") => Ok(Self::Machine),
            _ => {
                let amount = T::deserialize(Owned(value)).map_err(|error| {
                    de::Error::custom(format!(
                        "{error}; \"none\" stands for no limit, \"machine\" for what this host has"
                    ))
                })?;
                Ok(Self::At(amount))
            }
        }
    }
}

/// A JSON value whose deserialisation borrows nothing, whatever the lifetime asked for.
struct Owned(serde_json::Value);

impl<'de> Deserializer<'de> for Owned {
    type Error = serde_json::Error;
    fn deserialize_any<V: de::Visitor<'de>>(self, visitor: V) -> Result<V::Value, Self::Error> {
        self.0.deserialize_any(visitor)
    }
    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct
        newtype_struct seq tuple tuple_struct map struct enum identifier ignored_any
    }
}

/// A range of addresses: `169.254.0.0/16`, or one address alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Network {
    address: IpAddr,
    bits: u8,
}

impl Network {
    /// Whether `address` is in the range. An IPv4 address in IPv6's clothes (mapped, or behind the well-known NAT64
    /// prefix) is the IPv4 address.
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.address, plain(address)) {
            (IpAddr::V4(own), IpAddr::V4(other)) => {
                shared(u128::from(own.to_bits()) << 96, u128::from(other.to_bits()) << 96, self.bits)
            }
            (IpAddr::V6(own), IpAddr::V6(other)) => shared(own.to_bits(), other.to_bits(), self.bits),
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
        }
    }
}

fn shared(a: u128, b: u128, bits: u8) -> bool {
    (a ^ b).checked_shr(128 - u32::from(bits)).is_none_or(|rest| rest == 0)
}

fn plain(address: IpAddr) -> IpAddr {
    const NAT64: Network =
        Network { address: IpAddr::V6(Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, 0, 0)), bits: 96 };
    match address.to_canonical() {
        IpAddr::V6(six) if shared(six.to_bits(), addr_bits(NAT64.address), NAT64.bits) => {
            let [.., a, b, c, d] = six.octets();
            IpAddr::from([a, b, c, d])
        }
        other => other,
    }
}

fn addr_bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(four) => u128::from(four.to_bits()),
        IpAddr::V6(six) => six.to_bits(),
    }
}

impl FromStr for Network {
    type Err = TermError;
    fn from_str(text: &str) -> Result<Self, TermError> {
        let refused =
            || TermError::new(text, "write an address or a range such as 169.254.0.0/16 or fe80::/10");
        let (address, bits) = text.split_once('/').map_or((text, None), |(a, b)| (a, Some(b)));
        let address: IpAddr = address.parse().map_err(|_| refused())?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        let bits = bits.map_or(Ok(most), str::parse).map_err(|_| refused())?;
        if bits > most { Err(refused()) } else { Ok(Self { address, bits }) }
    }
}
impl TryFrom<String> for Network {
    type Error = TermError;
    fn try_from(text: String) -> Result<Self, TermError> {
        text.parse()
    }
}
impl From<Network> for String {
    fn from(network: Network) -> String {
        network.to_string()
    }
}
impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.bits)
    }
}

/// A namespace of the kernel that a container has for itself unless it shares another one's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Namespace {
    /// Processes.
    Pid,
    /// Shared memory and message queues.
    Ipc,
    /// Host name.
    Uts,
    /// Users.
    Userns,
    /// Network interfaces and ports.
    Network,
    /// The tree of control groups.
    Cgroup,
}

impl Namespace {
    /// All of them.
    pub const ALL: [Self; 6] = [Self::Pid, Self::Ipc, Self::Uts, Self::Userns, Self::Network, Self::Cgroup];
}

/// Which capabilities a container starts with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Capabilities {
    /// Docker's default set.
    Docker,
    /// None but those that `cap_add` allows and the task asks for.
    None,
}

/// Which redirects of a Girder or stream server are followed. Tokens go to their own origin in any case.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Redirects {
    /// To any host that `denied_networks` does not hold.
    Any,
    /// To hosts of `allowed_hosts` and the Girder host.
    Listed,
}

/// What happens at a symbolic link in something to upload; links are never followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum UploadLinks {
    /// It is left out, with a line in the log.
    Skip,
    /// The task fails.
    Error,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::Size;

    #[test]
    fn a_range_holds_its_addresses_in_every_spelling() {
        let range: Network = "169.254.0.0/16".parse().unwrap();
        for inside in ["169.254.169.254", "::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe"] {
            assert!(range.contains(inside.parse().unwrap()), "{inside}");
        }
        for outside in ["169.253.255.255", "169.255.0.0", "fe80::1", "::1"] {
            assert!(!range.contains(outside.parse().unwrap()), "{outside}");
        }
        let six: Network = "fe80::/10".parse().unwrap();
        assert!(six.contains("febf::1".parse().unwrap()));
        assert!(!six.contains("fec0::1".parse().unwrap()));
        let all: Network = "0.0.0.0/0".parse().unwrap();
        assert!(all.contains("8.8.8.8".parse().unwrap()));
        let one: Network = "10.0.0.1".parse().unwrap();
        assert!(one.contains("10.0.0.1".parse().unwrap()) && !one.contains("10.0.0.2".parse().unwrap()));
        for wrong in ["10.0.0.0/33", "fe80::/129", "ten", "10.0.0.0/-1"] {
            assert!(wrong.parse::<Network>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_limit_is_an_amount_the_machine_or_none() {
        let read = |text: &str| serde_json::from_str::<Limit<Size>>(text);
        assert_eq!(read("\"none\"").unwrap(), Limit::Unlimited);
        assert_eq!(read("\"machine\"").unwrap(), Limit::Machine);
        assert_eq!(read("\"4GiB\"").unwrap(), Limit::At(Size(4 << 30)));
        assert_eq!(read("1024").unwrap(), Limit::At(Size(1024)));
        let error = read("\"plenty\"").unwrap_err().to_string();
        assert!(error.contains("\"plenty\" is not a size") && error.contains("no limit"), "{error}");
        assert_eq!(serde_json::to_string(&Limit::At(Size(4 << 30))).unwrap(), "\"4GiB\"");
    }

    #[test]
    fn names_match_with_stars_and_only_as_a_whole() {
        let names = Names::try_from(vec!["runc".to_owned(), "kata-*".to_owned()]).unwrap();
        assert!(names.matches("runc") && names.matches("kata-fc"));
        assert!(!names.matches("runc2") && !names.matches("a-kata-fc"));
        assert!(!Names::default().matches("") && !Names::default().is_any());
        assert!(Names::try_from(vec!["[".to_owned()]).is_err());
    }
}
