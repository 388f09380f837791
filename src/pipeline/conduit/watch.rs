//! Waits for a pipe to change, without a thread and without polling.
//!
//! # Decisions
//! - The pipe is watched through an epoll instance of its own, which in turn the runtime watches. The runtime keeps
//!   "closed" for ever once it saw it, but a FIFO can be opened again; and it cannot tell of a FIFO's first opening.
//!   Here a change only wakes us, and what is true then is asked of the kernel ([`state`]).

use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use tokio::io::unix::AsyncFd;

/// Lets the runtime tell when `inner` is readable.
#[expect(deprecated, reason = "its successor is unsafe; both users own their descriptor and never change it")]
pub(super) fn readable<T: AsRawFd>(inner: T) -> io::Result<AsyncFd<T>> {
    AsyncFd::with_interest(inner, tokio::io::Interest::READABLE)
}

/// Wakes when a pipe changes.
pub(super) struct Watch {
    epoll: AsyncFd<Inner>,
}

struct Inner(Epoll);

impl AsRawFd for Inner {
    fn as_raw_fd(&self) -> RawFd {
        self.0.0.as_raw_fd()
    }
}

impl Watch {
    /// Watches the read end `pipe`.
    pub(super) fn reading(pipe: impl AsFd) -> io::Result<Self> {
        Self::new(pipe, EpollFlags::EPOLLIN)
    }

    /// Watches the write end `pipe`.
    pub(super) fn writing(pipe: impl AsFd) -> io::Result<Self> {
        Self::new(pipe, EpollFlags::EPOLLOUT)
    }

    fn new(pipe: impl AsFd, flags: EpollFlags) -> io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(pipe, EpollEvent::new(flags, 0))?;
        Ok(Self { epoll: readable(Inner(epoll))? })
    }

    /// Waits for a change since the last call. May wake for nothing. Cancel-safe.
    pub(super) async fn changed(&self) -> io::Result<()> {
        self.epoll.readable().await?.clear_ready();
        Ok(())
    }
}

/// What the kernel says of a pipe's end just now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// A read end has bytes, a write end has room.
    Ready,
    /// Neither bytes nor room, but somebody at the other end; or a FIFO that nobody opened yet.
    Idle,
    /// The other end was open and is not any more.
    Closed,
}

/// The state of the read end `pipe`.
pub(super) fn reading(pipe: impl AsFd) -> io::Result<State> {
    state(pipe, PollFlags::POLLIN)
}

/// The state of the write end `pipe`.
pub(super) fn writing(pipe: impl AsFd) -> io::Result<State> {
    state(pipe, PollFlags::POLLOUT)
}

fn state(pipe: impl AsFd, wanted: PollFlags) -> io::Result<State> {
    let mut fds = [PollFd::new(pipe.as_fd(), wanted)];
    loop {
        match poll(&mut fds, PollTimeout::ZERO) {
            Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
            Ok(_) => break,
        }
    }
    let seen = fds[0].revents().unwrap_or(PollFlags::empty());
    // A write end without a reader is writable too, in the sense that writing fails at once.
    Ok(if seen.contains(PollFlags::POLLERR) {
        State::Closed
    } else if seen.intersects(wanted) {
        State::Ready
    } else if seen.contains(PollFlags::POLLHUP) {
        State::Closed
    } else {
        State::Idle
    })
}
