//! System calls that fail, as the seccomp filters of containers and supervisors make them.
#![allow(dead_code)]
#![allow(unsafe_code, reason = "a filter is installed by a call that is in no safe library")]

use std::io::{Error, Result};
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Lets each of `calls` fail with `errno` in the calling thread and in all that it starts. It cannot be taken back.
pub fn forbid(calls: &[libc::c_long], errno: i32) -> Result<()> {
    install(&filter(calls, errno))
}

/// `command`, in whose process each of `calls` fails with `errno`.
pub fn forbidding(mut command: Command, calls: &[libc::c_long], errno: i32) -> Command {
    let filter = filter(calls, errno);
    // SAFETY: after the fork there are two system calls, and nothing is allocated.
    unsafe { command.pre_exec(move || install(&filter)) };
    command
}

fn filter(calls: &[libc::c_long], errno: i32) -> Vec<libc::sock_filter> {
    let statement = |code: u32, k: u32| libc::sock_filter { code: code as u16, jt: 0, jf: 0, k };
    // The number of the call is the first member of what a filter sees.
    let mut program = vec![statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0)];
    for &call in calls {
        let is_call = statement(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, call as u32);
        program.push(libc::sock_filter { jf: 1, ..is_call });
        program.push(statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ERRNO | errno as u32));
    }
    program.push(statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW));
    program
}

fn install(filter: &[libc::sock_filter]) -> Result<()> {
    // SAFETY: plain numbers.
    if unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) } != 0 {
        return Err(Error::last_os_error());
    }
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_ptr().cast_mut() };
    // SAFETY: the kernel copies as many statements as there are, and writes none.
    match unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) } {
        0 => Ok(()),
        _ => Err(Error::last_os_error()),
    }
}
