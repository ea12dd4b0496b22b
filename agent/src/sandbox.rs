//! Gives up the ability to run programs, for the whole life of the process and of its threads.
//!
//! A filter in the kernel (seccomp) refuses every system call that starts a program or a process, and those that
//! reach into another. It cannot be taken off again, not even by code that an attacker brought in. It holds
//! without systemd, without privileges and in containers, and what the agent reads does not need any of these
//! calls (`tests/sandbox.rs` compares). What else the service may not do is its unit's business.

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch, apply_filter_all_threads,
};

/// Calls of the x86 in 32-bit pointers ("x32") have this bit in their number, and the same architecture as the
/// usual ones: a filter that forgets them is none (seccomp(2)).
#[cfg(target_arch = "x86_64")]
const X32_BIT: i64 = 0x4000_0000;

/// Numbers of execve and execveat in x32 (arch/x86/entry/syscalls/syscall_64.tbl).
#[cfg(target_arch = "x86_64")]
const X32_EXEC: [i64; 2] = [X32_BIT | 520, X32_BIT | 545];

/// Why programs could still be run.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// There is no filter for this kind of machine.
    #[error("there is no filter of system calls for {0}")]
    Machine(&'static str),
    /// The filter could not be made.
    #[error("the filter of system calls cannot be made")]
    Filter(#[source] seccompiler::BackendError),
    /// The kernel did not take it: built without CONFIG_SECCOMP_FILTER, or a container forbids it.
    #[error("the kernel does not take a filter of system calls")]
    Kernel(#[source] seccompiler::Error),
}

/// From now on no thread of this process can run a program, start a process or reach into one.
///
/// # Errors
/// [`SandboxError`] where this machine or kernel has no such filter; then nothing has changed, or only that
/// threads are started in the older way.
pub fn give_up_programs() -> Result<(), SandboxError> {
    let machine = std::env::consts::ARCH;
    let target = TargetArch::try_from(machine).map_err(|_| SandboxError::Machine(machine))?;
    for filter in [threads_by_clone(target), no_programs(target)] {
        let program = filter.map_err(SandboxError::Filter)?;
        apply_filter_all_threads(&program).map_err(SandboxError::Kernel)?;
    }
    Ok(())
}

fn errno(number: i32) -> SeccompAction {
    SeccompAction::Errno(number.unsigned_abs())
}

/// The flags of clone3 are in memory, where a filter cannot look: who is told that it does not exist takes
/// clone, as on older kernels.
fn threads_by_clone(target: TargetArch) -> Result<BpfProgram, seccompiler::BackendError> {
    let mut rules = BTreeMap::new();
    rules.insert(libc::SYS_clone3, Vec::new());
    #[cfg(target_arch = "x86_64")]
    rules.insert(X32_BIT | libc::SYS_clone3, Vec::new());
    let told = errno(libc::ENOSYS);
    SeccompFilter::new(rules, SeccompAction::Allow, told, target)?.try_into()
}

fn no_programs(target: TargetArch) -> Result<BpfProgram, seccompiler::BackendError> {
    let mut calls = vec![
        libc::SYS_execve,
        libc::SYS_execveat,
        libc::SYS_ptrace,
        libc::SYS_process_vm_readv,
        libc::SYS_process_vm_writev,
    ];
    #[cfg(target_arch = "x86_64")]
    {
        calls.extend([libc::SYS_fork, libc::SYS_vfork]);
        let x32: Vec<i64> = calls.iter().map(|call| X32_BIT | call).collect();
        calls.extend(x32);
        calls.extend(X32_EXEC);
    }
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        calls.into_iter().map(|call| (call, Vec::new())).collect();
    // Another process, not another thread of this one.
    let thread = u64::from(libc::CLONE_THREAD.unsigned_abs());
    let no_thread = SeccompCmpOp::MaskedEq(thread);
    let flags = SeccompCondition::new(0, SeccompCmpArgLen::Qword, no_thread, 0)?;
    let process = SeccompRule::new(vec![flags])?;
    rules.insert(libc::SYS_clone, vec![process.clone()]);
    #[cfg(target_arch = "x86_64")]
    rules.insert(X32_BIT | libc::SYS_clone, vec![process]);
    let refused = errno(libc::EPERM);
    SeccompFilter::new(rules, SeccompAction::Allow, refused, target)?.try_into()
}
