//! The keywords whose values are more than a number or a text, each as docker-py converts it
//! (`docker/types/containers.py`, `docker/utils/utils.py`).

use std::collections::HashMap;
use std::net::IpAddr;

use bollard::models::{
    DeviceMapping, DeviceRequest, EndpointSettings, HealthConfig, HostConfigLogConfig, Mount, PortBinding,
    ResourcesBlkioWeightDevice, ResourcesUlimits, ThrottleDevice,
};

use super::error::ArgError;
use super::given::{Given, models};
use super::options::Draft;
use crate::task::Arg;

type Taken = Result<(), ArgError>;

const WEIGHT: &str = "a map such as {\"Path\": \"/dev/sda\", \"Weight\": 300}";
const RATE: &str = "a map such as {\"Path\": \"/dev/sda\", \"Rate\": 1048576}";
const MOUNT: &str = "a map with the engine's fields Type, Source, Target, ReadOnly, Consistency, BindOptions, \
                     VolumeOptions, TmpfsOptions";
const ENDPOINT: &str =
    "a map with the engine's fields Aliases, Links, IPAMConfig, DriverOpts, MacAddress, GwPriority";

pub(super) fn weights(draft: &mut Draft, given: &Given<'_>) -> Taken {
    let list = models::<ResourcesBlkioWeightDevice>(given, WEIGHT)?;
    draft.host().blkio_weight_device = Some(list);
    Ok(())
}

pub(super) fn read_bps(draft: &mut Draft, given: &Given<'_>) -> Taken {
    draft.host().blkio_device_read_bps = Some(models::<ThrottleDevice>(given, RATE)?);
    Ok(())
}

pub(super) fn read_iops(draft: &mut Draft, given: &Given<'_>) -> Taken {
    draft.host().blkio_device_read_iops = Some(models::<ThrottleDevice>(given, RATE)?);
    Ok(())
}

pub(super) fn write_bps(draft: &mut Draft, given: &Given<'_>) -> Taken {
    draft.host().blkio_device_write_bps = Some(models::<ThrottleDevice>(given, RATE)?);
    Ok(())
}

pub(super) fn write_iops(draft: &mut Draft, given: &Given<'_>) -> Taken {
    draft.host().blkio_device_write_iops = Some(models::<ThrottleDevice>(given, RATE)?);
    Ok(())
}

pub(super) fn mounts(draft: &mut Draft, given: &Given<'_>) -> Taken {
    draft.host().mounts = Some(models::<Mount>(given, MOUNT)?);
    Ok(())
}

pub(super) fn networking_config(draft: &mut Draft, given: &Given<'_>) -> Taken {
    let endpoints = given
        .entries()?
        .into_iter()
        .map(|(network, endpoint)| {
            let settings =
                if endpoint.is_null() { EndpointSettings::default() } else { endpoint.model(ENDPOINT)? };
            Ok((network.to_owned(), settings))
        })
        .collect::<Result<HashMap<_, _>, ArgError>>()?;
    draft.endpoints = Some(endpoints).filter(|map| !map.is_empty());
    Ok(())
}

pub(super) fn device_requests(draft: &mut Draft, given: &Given<'_>) -> Taken {
    let known = [
        ("driver", "Driver"),
        ("count", "Count"),
        ("device_ids", "DeviceIDs"),
        ("capabilities", "Capabilities"),
        ("options", "Options"),
    ];
    let read = |item: &Given<'_>| {
        let fields = item.fields(&known)?;
        Ok(DeviceRequest {
            driver: fields.get("driver", Given::text)?,
            count: fields.get("count", |count| count.integer(&(-1..=i64::MAX)))?,
            device_ids: fields.get("device_ids", Given::scalars)?,
            capabilities: fields.get("capabilities", |lists| {
                lists.items()?.iter().map(Given::texts).collect::<Result<_, _>>()
            })?,
            options: fields.get("options", Given::text_map)?,
        })
    };
    draft.host().device_requests = Some(given.items()?.iter().map(read).collect::<Result<_, ArgError>>()?);
    Ok(())
}

/// `host[:container[:permissions]]`, or the engine's own map.
pub(super) fn devices(draft: &mut Draft, given: &Given<'_>) -> Taken {
    const ACCEPTED: &str = "\"/dev/host[:/dev/container[:rwm]]\" or a map with PathOnHost, PathInContainer, \
                            CgroupPermissions";
    let read = |item: &Given<'_>| match item.arg {
        Arg::Text(text) => {
            let parts: Vec<&str> = text.split(':').collect();
            let (path, inside, permissions) = match parts[..] {
                [path] => (path, path, "rwm"),
                [path, inside] => (path, inside, "rwm"),
                [path, inside, permissions] => (path, inside, permissions),
                _ => return Err(item.refuse(ACCEPTED)),
            };
            let sound = path.starts_with('/')
                && !permissions.is_empty()
                && permissions.chars().all(|c| "rwm".contains(c));
            if !sound {
                return Err(item.refuse(ACCEPTED));
            }
            Ok(DeviceMapping {
                path_on_host: Some(path.to_owned()),
                path_in_container: Some(inside.to_owned()),
                cgroup_permissions: Some(permissions.to_owned()),
            })
        }
        _ => item.model(ACCEPTED),
    };
    draft.host().devices = Some(given.items()?.iter().map(read).collect::<Result<_, _>>()?);
    Ok(())
}

/// A null value leaves the `=` out: the engine then removes the variable.
pub(super) fn environment(draft: &mut Draft, given: &Given<'_>) -> Taken {
    let variables = match given.arg {
        Arg::Map(_) => given
            .entries()?
            .into_iter()
            .map(|(name, value)| {
                if name.is_empty() || name.contains(['=', '\0']) {
                    return Err(ArgError::Refused {
                        path: value.path,
                        reason: "a variable's name is not empty and holds neither = nor a zero byte"
                            .to_owned(),
                    });
                }
                if value.is_null() { Ok(name.to_owned()) } else { Ok(format!("{name}={}", value.printed()?)) }
            })
            .collect::<Result<_, _>>()?,
        Arg::List(_) => given.texts()?,
        _ => return Err(given.refuse("a map of variables or a list of \"NAME=value\"")),
    };
    draft.out.body.env = Some(variables);
    Ok(())
}

pub(super) fn extra_hosts(draft: &mut Draft, given: &Given<'_>) -> Taken {
    let hosts = match given.arg {
        Arg::Map(_) => {
            let mut hosts = given
                .entries()?
                .into_iter()
                .map(|(name, address)| Ok(format!("{name}:{}", address.text()?)))
                .collect::<Result<Vec<_>, ArgError>>()?;
            hosts.sort();
            hosts
        }
        _ => given
            .texts()
            .map_err(|_| given.refuse("a map of names and addresses or a list of \"name:address\""))?,
    };
    draft.host().extra_hosts = Some(hosts);
    Ok(())
}

pub(super) fn group_add(draft: &mut Draft, given: &Given<'_>) -> Taken {
    draft.host().group_add = Some(given.scalars()?);
    Ok(())
}

pub(super) fn labels(draft: &mut Draft, given: &Given<'_>) -> Taken {
    let labels = match given.arg {
        Arg::List(_) => given.texts()?.into_iter().map(|name| (name, String::new())).collect(),
        Arg::Map(_) => given.text_map()?,
        _ => return Err(given.refuse("a map of labels or a list of their names")),
    };
    draft.out.body.labels = Some(labels);
    Ok(())
}

/// A map of containers to aliases, or a list of such pairs; sorted, as docker-py sorts them.
pub(super) fn links(draft: &mut Draft, given: &Given<'_>) -> Taken {
    let joined = |name: &str, alias: &Given<'_>| -> Result<String, ArgError> {
        let alias = if alias.is_null() { String::new() } else { alias.text()? };
        Ok(if alias.is_empty() { name.to_owned() } else { format!("{name}:{alias}") })
    };
    let mut links: Vec<String> = match given.arg {
        Arg::Map(_) => {
            given.entries()?.iter().map(|(name, alias)| joined(name, alias)).collect::<Result<_, _>>()?
        }
        Arg::List(_) => given
            .items()?
            .iter()
            .map(|item| match item.arg {
                Arg::Text(_) => item.text(),
                Arg::List(pair) if pair.len() == 2 => {
                    let parts = item.items()?;
                    joined(&parts[0].text()?, &parts[1])
                }
                _ => Err(item.refuse("a pair of container and alias")),
            })
            .collect::<Result<_, _>>()?,
        _ => return Err(given.refuse("a map of containers and aliases")),
    };
    links.sort();
    draft.host().links = Some(links);
    Ok(())
}

pub(super) fn log_config(draft: &mut Draft, given: &Given<'_>) -> Taken {
    let fields = given.fields(&[("type", "Type"), ("config", "Config")])?;
    draft.host().log_config = Some(HostConfigLogConfig {
        typ: fields.get("type", Given::text)?,
        config: Some(fields.get("config", Given::text_map)?.unwrap_or_default()),
    });
    Ok(())
}

/// Apart from the other numbers because zero is a value here.
pub(super) fn mem_swappiness(draft: &mut Draft, given: &Given<'_>) -> Taken {
    draft.host().memory_swappiness = Some(given.integer(&(0..=100))?);
    Ok(())
}

pub(super) fn stop_signal(draft: &mut Draft, given: &Given<'_>) -> Taken {
    draft.out.body.stop_signal = name_or_number(given, "a signal's name or number")?;
    Ok(())
}

pub(super) fn user(draft: &mut Draft, given: &Given<'_>) -> Taken {
    draft.out.body.user = name_or_number(given, "a user's name or number, with \":group\" where wanted")?;
    Ok(())
}

fn name_or_number(given: &Given<'_>, accepted: &str) -> Result<Option<String>, ArgError> {
    match given.arg {
        Arg::Text(_) | Arg::Number(_) => {
            given.scalar().map(|text| Some(text).filter(|text| !text.is_empty()))
        }
        _ => Err(given.refuse(accepted)),
    }
}

pub(super) fn tmpfs(draft: &mut Draft, given: &Given<'_>) -> Taken {
    let mounts = match given.arg {
        Arg::Map(_) => given.text_map()?,
        Arg::List(_) => given
            .texts()?
            .into_iter()
            .map(|text| match text.split_once(':') {
                Some((path, options)) => (path.to_owned(), options.to_owned()),
                None => (text, String::new()),
            })
            .collect(),
        _ => return Err(given.refuse("a map of paths and options or a list of \"path[:options]\"")),
    };
    draft.host().tmpfs = Some(mounts);
    Ok(())
}

/// docker-py sends a missing half as null, which the engine reads as 0 and then refuses the pair; it is the other half here.
pub(super) fn ulimits(draft: &mut Draft, given: &Given<'_>) -> Taken {
    const ACCEPTED: &str = "a map such as {\"Name\": \"nofile\", \"Soft\": 1024, \"Hard\": 2048}";
    let limit = |value: &Given<'_>| value.integer(&(-1..=i64::MAX));
    let read = |item: &Given<'_>| {
        let fields = item.fields(&[("name", "Name"), ("soft", "Soft"), ("hard", "Hard")])?;
        let name = fields.get("name", Given::text)?;
        let (soft, hard) = (fields.get("soft", limit)?, fields.get("hard", limit)?);
        if name.is_none() || (soft.is_none() && hard.is_none()) {
            return Err(item.refuse(ACCEPTED));
        }
        Ok(ResourcesUlimits { name, soft: soft.or(hard), hard: hard.or(soft) })
    };
    let items = given.items().map_err(|_| given.refuse(format!("a list of {ACCEPTED}")))?;
    draft.host().ulimits = Some(items.iter().map(read).collect::<Result<_, _>>()?);
    Ok(())
}

pub(super) fn volumes_from(draft: &mut Draft, given: &Given<'_>) -> Taken {
    let containers = match given.arg {
        Arg::Text(text) => text.split(',').map(str::to_owned).collect(),
        _ => given.texts()?,
    };
    draft.host().volumes_from = Some(containers);
    Ok(())
}

/// Times are nanoseconds, 0 or at least a millisecond, as the engine demands.
pub(super) fn healthcheck(draft: &mut Draft, given: &Given<'_>) -> Taken {
    let fields = given.fields(&[
        ("test", "Test"),
        ("interval", "Interval"),
        ("timeout", "Timeout"),
        ("retries", "Retries"),
        ("start_period", "StartPeriod"),
    ])?;
    let time = |value: &Given<'_>| match value.integer(&(0..=i64::MAX))? {
        1..=999_999 => Err(value.refuse("nanoseconds: 0 or at least 1000000 (1 ms)")),
        nanoseconds => Ok(nanoseconds),
    };
    draft.out.body.healthcheck = Some(HealthConfig {
        test: fields.get("test", |test| match test.arg {
            Arg::Text(_) => Ok(vec!["CMD-SHELL".to_owned(), test.text()?]),
            _ => test.texts(),
        })?,
        interval: fields.get("interval", time)?,
        timeout: fields.get("timeout", time)?,
        retries: fields.get("retries", |value| value.integer(&(0..=i64::MAX)))?,
        start_period: fields.get("start_period", time)?,
        start_interval: None,
    });
    Ok(())
}

/// "Never restart" is what the worker does anyway.
pub(super) fn restart_policy(_: &mut Draft, given: &Given<'_>) -> Taken {
    let name = match given.arg {
        Arg::Map(map) => map.get("Name").or_else(|| map.get("name")),
        other => Some(other),
    };
    match name {
        Some(Arg::Text(name)) if name.is_empty() || name == "no" => Ok(()),
        _ => Err(ArgError::Refused {
            path: given.path.clone(),
            reason: "the worker decides when a task runs again, use the task's retry".to_owned(),
        }),
    }
}

/// Keys are container ports (`2222` or `2222/udp`), values host ports: a number, null for any free one, a pair of
/// address and port, or a list of these.
pub(super) fn ports(draft: &mut Draft, given: &Given<'_>) -> Taken {
    let mut bindings = HashMap::new();
    for (key, value) in given.entries()? {
        let (port, protocol) = key.split_once('/').unwrap_or((key, "tcp"));
        if !is_port(port) || !["tcp", "udp", "sctp"].contains(&protocol) {
            return Err(ArgError::Refused {
                path: value.path,
                reason: "a container's port is 1 to 65535 with /tcp, /udp or /sctp where wanted".to_owned(),
            });
        }
        let list = match value.arg {
            Arg::List(items) if !is_pair(items) => {
                value.items()?.iter().map(binding).collect::<Result<_, _>>()?
            }
            _ => vec![binding(&value)?],
        };
        bindings.insert(format!("{port}/{protocol}"), Some(list));
    }
    let mut exposed: Vec<String> = bindings.keys().cloned().collect();
    exposed.sort();
    if !exposed.is_empty() {
        draft.out.body.exposed_ports = Some(exposed);
        draft.host().port_bindings = Some(bindings);
    }
    Ok(())
}

/// A Python tuple of address and port arrives as a list; only a tuple begins with an address.
fn is_pair(items: &[Arg]) -> bool {
    let address = matches!(items.first(), Some(Arg::Text(text)) if text.parse::<IpAddr>().is_ok());
    address && items.len() <= 2
}

fn binding(given: &Given<'_>) -> Result<PortBinding, ArgError> {
    const ACCEPTED: &str = "a host port, null for any free one, or a pair of address and port";
    let port = |value: &Given<'_>| match value.arg {
        Arg::Null => Ok(String::new()),
        Arg::Number(_) => value.integer(&(0..=65_535)).map(|n| n.to_string()),
        Arg::Text(text) if text.is_empty() || text.split('-').all(is_port) => Ok(text.clone()),
        _ => Err(value.refuse(ACCEPTED)),
    };
    let (address, port) = match given.arg {
        Arg::List(items) if is_pair(items) => {
            let parts = given.items()?;
            (parts[0].text()?, parts.get(1).map_or(Ok(String::new()), port)?)
        }
        Arg::Map(_) => {
            let fields = given.fields(&[("host_port", "HostPort"), ("host_ip", "HostIp")])?;
            let Some(number) = fields.get("host_port", port)? else {
                return Err(given.refuse(ACCEPTED));
            };
            (fields.get("host_ip", Given::text)?.unwrap_or_default(), number)
        }
        _ => (String::new(), port(given)?),
    };
    Ok(PortBinding { host_ip: Some(address), host_port: Some(port) })
}

fn is_port(text: &str) -> bool {
    text.chars().all(|c| c.is_ascii_digit()) && text.parse::<u16>().is_ok_and(|n| n > 0)
}
