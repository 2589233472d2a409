//! Follows the threads of one process, and of no child of it, from system call to system call. It
//! tells of each that changes the world, and at those it is told of it kills the process on entry,
//! has the call fail, or has less written than was asked for.
//!
//! `strace --inject` counts a thread's calls by their number alone and follows children as well, so
//! neither "the second time that this file is renamed" nor "the daemon, but not the runtime that it
//! starts" can be said to it.
//!
//! What it is to do comes by its standard input, so that no argument names a test's directory, where
//! nobody may be left at work: [`holdfast_tests::tracer::Order`]. A process writes its number to the
//! FIFO `hello`, waits for a line from the FIFO `go`, and then becomes the program that is followed.

mod calls;

use std::collections::HashMap;
use std::error::Error;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;

use holdfast_tests::tracer::{Deed, Order, Point, Report, Rule};
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use calls::{Call, Regs};

type Outcome<T> = Result<T, Box<dyn Error>>;

fn main() -> Outcome<()> {
    let order = Order::read(std::io::stdin())?;
    let Order { hello, go, base, id, rules } = order;
    // Open for both from now on, so what is written to it stays until the other side reads.
    let mut go = File::options().read(true).write(true).open(go)?;
    let mut number = String::new();
    BufReader::new(File::open(hello)?).read_line(&mut number)?;
    let leader = Pid::from_raw(number.trim().parse()?);
    // Threads are followed, what is forked is not. `posix_spawn` is a vfork to the kernel.
    let options =
        Options::PTRACE_O_TRACESYSGOOD | Options::PTRACE_O_TRACECLONE | Options::PTRACE_O_TRACEEXEC;
    ptrace::seize(leader, options)?;
    ptrace::interrupt(leader)?;
    waitpid(leader, Some(WaitPidFlag::__WALL))?;
    go.write_all(b"go\n")?;
    ptrace::syscall(leader, None)?;
    let mut tracer = Tracer {
        leader,
        base,
        id,
        rules,
        live: false,
        inside: HashMap::new(),
        seen: HashMap::new(),
    };
    tracer.run()
}

/// What is to be done at the end of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum AtEnd {
    Nothing,
    /// Say that it has failed.
    Fail(i32),
    /// Tell of a point of its own: what was started is at work now, and nothing that its starter does
    /// until its end may be a call that counts.
    Spawned,
}

struct Tracer {
    leader: Pid,
    base: PathBuf,
    /// The container's id, which differs from one run to the next.
    id: String,
    rules: Vec<Rule>,
    /// Whether the process has become the program that is meant.
    live: bool,
    /// Threads in a system call, and what is to be done at its end.
    inside: HashMap<Pid, AtEnd>,
    /// How often each call was made.
    seen: HashMap<String, u32>,
}

impl Tracer {
    fn run(&mut self) -> Outcome<()> {
        loop {
            let status = match waitpid(None, Some(WaitPidFlag::__WALL)) {
                Err(nix::Error::EINTR) => continue,
                Err(nix::Error::ECHILD) => return Ok(()),
                other => other?,
            };
            let (thread, signal) = match status {
                WaitStatus::PtraceSyscall(thread) => {
                    self.at_call(thread)?;
                    (thread, None)
                }
                WaitStatus::PtraceEvent(thread, _, event) => {
                    if event == nix::libc::PTRACE_EVENT_EXEC {
                        self.live = true;
                    }
                    (thread, None)
                }
                WaitStatus::Stopped(thread, signal) => (thread, Some(signal)),
                WaitStatus::Exited(thread, code) => {
                    self.ended(thread, format!("exit {code}"));
                    continue;
                }
                WaitStatus::Signaled(thread, signal, _) => {
                    self.ended(thread, format!("{signal}"));
                    continue;
                }
                _ => continue,
            };
            // It may have been killed meanwhile, which the next round says.
            let _ = ptrace::syscall(thread, signal);
        }
    }

    fn ended(&mut self, thread: Pid, how: String) {
        self.inside.remove(&thread);
        if thread == self.leader {
            tell(&Report::Ended(how));
        }
    }

    /// A thread is on its way into a system call or out of one.
    fn at_call(&mut self, thread: Pid) -> Outcome<()> {
        let Ok(regs) = ptrace::getregs(thread) else { return Ok(()) };
        match self.inside.remove(&thread) {
            Some(AtEnd::Nothing) => return Ok(()),
            Some(AtEnd::Fail(errno)) => {
                return Ok(ptrace::setregs(thread, calls::with_error(regs, errno))?);
            }
            Some(AtEnd::Spawned) => {
                return self.decide(thread, &regs, "spawned".to_owned()).map(drop);
            }
            None => {}
        }
        let mut at_end = AtEnd::Nothing;
        if self.live
            && let Some(call) = Call::decode(self.leader, thread, &regs, (&self.base, &self.id))
        {
            at_end = self.decide(thread, &regs, call.key())?;
            if call.spawns() && at_end == AtEnd::Nothing {
                at_end = AtEnd::Spawned;
            }
        }
        self.inside.insert(thread, at_end);
        Ok(())
    }

    fn decide(&mut self, thread: Pid, regs: &Regs, key: String) -> Outcome<AtEnd> {
        let time = self.seen.entry(key.clone()).or_insert(0);
        *time += 1;
        let time = *time;
        let point = Point { key: key.clone(), time };
        tell(&Report::Call(point.clone()));
        let rule = self.rules.iter().find(|rule| rule.applies(&key, time));
        let Some(rule) = rule else { return Ok(AtEnd::Nothing) };
        tell(&Report::Done(point));
        match rule.deed {
            Deed::Kill => {
                // The call is not made any more: the kernel looks for a fatal signal first.
                kill(self.leader, Signal::SIGKILL)?;
                Ok(AtEnd::Nothing)
            }
            Deed::Fail(errno) => {
                ptrace::setregs(thread, calls::without_call(*regs))?;
                Ok(AtEnd::Fail(errno))
            }
            Deed::Short(length) => {
                ptrace::setregs(thread, calls::with_length(*regs, length))?;
                Ok(AtEnd::Nothing)
            }
        }
    }
}

/// Whoever asked for it may be gone.
fn tell(report: &Report) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{}", report.to_line());
    let _ = out.flush();
}
