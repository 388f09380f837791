//! Lua scripts: sent by their sum, and loaded again when the server has forgotten them.

use std::sync::LazyLock;

use redis::{Cmd, ToRedisArgs};

/// A Lua script, hashed once.
#[derive(Debug)]
pub struct Script {
    source: &'static [&'static str],
    inner: LazyLock<redis::Script>,
}

impl Script {
    /// Of `source`, whose parts are joined by line ends.
    pub const fn new(source: &'static [&'static str], make: fn() -> redis::Script) -> Self {
        Self { source, inner: LazyLock::new(make) }
    }

    /// The script of these parts.
    pub fn made_of(source: &[&str]) -> redis::Script {
        redis::Script::new(&source.join("\n"))
    }

    /// Begins a call with the keys that it works on.
    pub fn on(&'static self, keys: &[String]) -> Call {
        let mut command = redis::cmd("EVALSHA");
        command.arg(self.inner.get_hash()).arg(keys.len()).arg(keys);
        Call { script: self, command }
    }

    /// The command that makes the server know it.
    pub(super) fn load(&self) -> Cmd {
        let mut command = redis::cmd("SCRIPT");
        command.arg("LOAD").arg(self.source.join("\n"));
        command
    }
}

/// A static [`Script`] of one or more Lua files.
macro_rules! script {
    ($name:ident, $($part:expr),+) => {
        static $name: $crate::redis::Script = {
            const SOURCE: &[&str] = &[$(include_str!($part)),+];
            $crate::redis::Script::new(SOURCE, || $crate::redis::Script::made_of(SOURCE))
        };
    };
}
pub(crate) use script;

/// One call of a script.
pub struct Call {
    script: &'static Script,
    command: Cmd,
}

impl Call {
    /// Adds an argument.
    #[must_use]
    pub fn arg(mut self, argument: impl ToRedisArgs) -> Self {
        self.command.arg(argument);
        self
    }

    /// Adds an argument in place.
    pub fn push(&mut self, argument: impl ToRedisArgs) {
        self.command.arg(argument);
    }

    pub(super) fn command(&self) -> &Cmd {
        &self.command
    }

    pub(super) fn script(&self) -> &'static Script {
        self.script
    }
}
