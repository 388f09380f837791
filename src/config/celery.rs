//! Celery's addresses: how its variables name a broker, and what an address that speaks Celery implies for other settings.

use super::types::Address;

/// What stands before the scheme of a Redis that Celery uses, apart from one with longshore's own queues.
const CELERYS: &str = "celery+";
/// What only kombu's queues have among the options of an address.
const KOMBUS: [&str; 2] = ["global_keyprefix", "visibility_timeout"];

/// The broker that a variable of Celery or girder_worker names: `redis://` means Celery's queues there.
pub(super) fn broker(text: &str) -> String {
    let text = redis(text);
    if ["redis:", "rediss:", "redis+unix:"].iter().any(|scheme| text.starts_with(scheme)) {
        format!("{CELERYS}{text}")
    } else {
        text
    }
}

/// An address of Redis in our words: Celery calls a socket `redis+socket:///path?virtual_host=0`.
pub(super) fn redis(text: &str) -> String {
    match text.strip_prefix("redis+socket:") {
        Some(rest) => {
            format!("redis+unix:{}", rest.replace("virtual_host=", "db=").replace("password=", "pass="))
        }
        None => text.to_owned(),
    }
}

/// Whether Celery's programs use the broker at `address`, too.
pub(super) fn is_spoken(address: &Address) -> bool {
    address.expose().starts_with("amqp") || address.expose().starts_with(CELERYS)
}

/// The store on the very server of a broker that Celery uses; `None` where that keeps no records.
pub(super) fn store(broker: &Address) -> Option<Address> {
    let server = broker.expose().strip_prefix(CELERYS)?;
    let (base, query) = server.split_once('?').unwrap_or((server, ""));
    let of_kombu = |pair: &&str| KOMBUS.iter().any(|name| pair.split('=').next() == Some(name));
    let rest: Vec<&str> = query.split('&').filter(|pair| !pair.is_empty() && !of_kombu(pair)).collect();
    let query = if rest.is_empty() { String::new() } else { format!("?{}", rest.join("&")) };
    Some(Address::new(format!("{base}{query}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn celerys_variables_name_celerys_queues() {
        for (theirs, ours) in [
            ("redis://:x@h:1/2", "celery+redis://:x@h:1/2"),
            ("rediss://h/0?ssl_cert_reqs=required", "celery+rediss://h/0?ssl_cert_reqs=required"),
            ("redis+socket:///run/r.sock?virtual_host=3", "celery+redis+unix:///run/r.sock?db=3"),
            ("celery+redis://h", "celery+redis://h"),
            ("amqp://h//", "amqp://h//"),
        ] {
            assert_eq!(broker(theirs), ours);
        }
    }

    #[test]
    fn the_store_is_on_the_brokers_server() {
        let store = |text: &str| store(&Address::new(text.to_owned())).map(|found| found.expose().to_owned());
        let whole = "celery+redis://:x@h/2?global_keyprefix=a-&ca=/c.pem&visibility_timeout=9";
        assert_eq!(store(whole).as_deref(), Some("redis://:x@h/2?ca=/c.pem"));
        assert_eq!(
            store("celery+redis+unix:///r.sock?visibility_timeout=9").as_deref(),
            Some("redis+unix:///r.sock")
        );
        assert_eq!(store("amqp://h"), None);
    }
}
