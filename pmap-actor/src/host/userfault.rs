//! userfaultfd: how a nested fault reaches us with its address.
//!
//! On KVM this is the only channel that carries the address of a fault on host-mapped
//! memory. The interface is small and stable (`linux/userfaultfd.h`), so it is spelled out
//! here: the crate that wraps it needs libclang to build and lacks half of what we use.
//! The sizes of the structures, which are part of the ioctl numbers, are asserted below.

#![expect(unsafe_code, reason = "ioctls on userfaultfd have no safe wrapper")]

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

/// What we cannot do without, and what we use where it is there.
pub mod feature {
    /// Write-protect faults.
    pub const PAGEFAULT_FLAG_WP: u64 = 1 << 0;
    /// Missing pages of shared memory.
    pub const MISSING_SHMEM: u64 = 1 << 5;
    /// The faulting thread's id comes with the event.
    pub const THREAD_ID: u64 = 1 << 8;
    /// Pages that are in the object but not mapped.
    pub const MINOR_SHMEM: u64 = 1 << 10;
    /// Write-protection of shared memory.
    pub const WP_HUGETLBFS_SHMEM: u64 = 1 << 12;
    /// Write-protected pages become writable by themselves at the first store, and the kernel
    /// remembers which did (Linux 6.7). Nothing here uses it for a guest: it would make read-only
    /// memory writable just the same.
    pub const WP_ASYNC: u64 = 1 << 15;
    /// All that skep needs.
    pub const NEEDED: u64 =
        PAGEFAULT_FLAG_WP | MISSING_SHMEM | THREAD_ID | MINOR_SHMEM | WP_HUGETLBFS_SHMEM;
}

const API: u64 = 0xaa;
const MODE_MISSING: u64 = 1;
const MODE_WP: u64 = 2;
const MODE_MINOR: u64 = 4;
const CONTINUE_MODE_WP: u64 = 2;
const WRITEPROTECT_MODE_WP: u64 = 1;
const EVENT_PAGEFAULT: u8 = 0x12;
const FLAG_WRITE: u64 = 1;
const FLAG_WP: u64 = 2;

#[repr(C)]
struct ApiArgument {
    api: u64,
    features: u64,
    ioctls: u64,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Range {
    start: u64,
    len: u64,
}

/// The shape of `uffdio_register`, `uffdio_zeropage` and `uffdio_continue`: a range, a
/// mode, and a number the kernel fills in.
#[repr(C)]
struct RangeModeResult {
    range: Range,
    mode: u64,
    result: i64,
}

#[repr(C)]
struct RangeMode {
    range: Range,
    mode: u64,
}

const fn ioctl_number(direction: u64, number: u64, size: usize) -> u64 {
    direction << 30 | (size as u64) << 16 | API << 8 | number
}

const READ_WRITE: u64 = 3;
const READ: u64 = 2;
const UFFDIO_API: u64 = ioctl_number(READ_WRITE, 0x3f, size_of::<ApiArgument>());
const UFFDIO_REGISTER: u64 = ioctl_number(READ_WRITE, 0x00, size_of::<RangeModeResult>());
const UFFDIO_UNREGISTER: u64 = ioctl_number(READ, 0x01, size_of::<Range>());
const UFFDIO_WAKE: u64 = ioctl_number(READ, 0x02, size_of::<Range>());
const UFFDIO_ZEROPAGE: u64 = ioctl_number(READ_WRITE, 0x04, size_of::<RangeModeResult>());
const UFFDIO_WRITEPROTECT: u64 = ioctl_number(READ_WRITE, 0x06, size_of::<RangeMode>());
const UFFDIO_CONTINUE: u64 = ioctl_number(READ_WRITE, 0x07, size_of::<RangeModeResult>());
const USERFAULTFD_IOC_NEW: u64 = 0xaa00;

// The numbers as the kernel's header computes them.
const _: () = assert!(UFFDIO_API == 0xc018_aa3f);
const _: () = assert!(UFFDIO_REGISTER == 0xc020_aa00);
const _: () = assert!(UFFDIO_UNREGISTER == 0x8010_aa01);
const _: () = assert!(UFFDIO_WAKE == 0x8010_aa02);
const _: () = assert!(UFFDIO_ZEROPAGE == 0xc020_aa04);
const _: () = assert!(UFFDIO_WRITEPROTECT == 0xc018_aa06);
const _: () = assert!(UFFDIO_CONTINUE == 0xc020_aa07);

/// `struct uffd_msg`, as far as page faults fill it.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Message {
    event: u8,
    reserved: [u8; 7],
    flags: u64,
    address: u64,
    thread: u32,
    padding: u32,
}

const _: () = assert!(size_of::<Message>() == 32);

/// A page fault in a registered range. The faulting thread sleeps until it is resolved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Host address, of the page at least.
    pub address: u64,
    /// It was a store.
    pub is_write: bool,
    /// The page is mapped, and write-protected.
    pub is_write_protect: bool,
    /// The thread that took the fault: a vcpu's, or a kernel worker's in its stead.
    pub thread: u32,
}

/// Why there is no userfaultfd.
#[derive(Debug, thiserror::Error)]
pub enum NoUserfault {
    /// Not allowed.
    #[error(
        "userfaultfd for kernel faults is not permitted here: run as root, or grant access with \
         `chmod a+rw /dev/userfaultfd` or `sysctl vm.unprivileged_userfaultfd=1`"
    )]
    Denied,
    /// Not in this kernel.
    #[error("this kernel has no userfaultfd (CONFIG_USERFAULTFD)")]
    Absent,
    /// Too old.
    #[error(
        "this kernel's userfaultfd lacks features {missing:#x} of {needed:#x} (Linux 5.19 has all of them)"
    )]
    TooOld {
        /// Bits that are missing.
        missing: u64,
        /// Bits we need.
        needed: u64,
    },
    /// Anything else.
    #[error("userfaultfd failed: {0}")]
    Other(#[source] io::Error),
}

/// How an installation went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Installed {
    /// This many bytes from the start are mapped now; more may be left.
    Bytes(u64),
    /// The first page was mapped already.
    AlreadyThere,
    /// The kernel is changing the mapping at this moment: ask again.
    Busy,
}

/// An open userfaultfd.
#[derive(Debug)]
pub struct Userfault {
    fd: OwnedFd,
}

impl Userfault {
    /// Opens one that also reports faults the kernel takes for us (KVM's), and agrees on
    /// the features we need.
    ///
    /// # Errors
    ///
    /// [`NoUserfault`], with what to do about it.
    pub fn open() -> Result<Self, NoUserfault> {
        Self::open_with(feature::NEEDED)
    }

    /// The same with these features ([`feature`]) and no others.
    ///
    /// # Errors
    ///
    /// [`NoUserfault`].
    pub fn open_with(needed: u64) -> Result<Self, NoUserfault> {
        let missing = needed & !Self::features()?;
        if missing != 0 {
            return Err(NoUserfault::TooOld { missing, needed });
        }
        let this = Self::open_raw()?;
        this.agree(needed).map_err(NoUserfault::Other)?;
        Ok(this)
    }

    /// What this kernel offers.
    ///
    /// # Errors
    ///
    /// [`NoUserfault`].
    pub fn features() -> Result<u64, NoUserfault> {
        // Agreeing on nothing makes the kernel say what there is; an agreement is final, so
        // this descriptor serves nothing else.
        Self::open_raw()?.agree(0).map_err(NoUserfault::Other)
    }

    fn open_raw() -> Result<Self, NoUserfault> {
        let flags = libc::O_CLOEXEC | libc::O_NONBLOCK;
        // SAFETY: no pointers are involved.
        let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, flags) };
        if fd >= 0 {
            let fd = RawFd::try_from(fd).expect("a file descriptor is an int");
            // SAFETY: `fd` was just created and nobody else owns it.
            return Ok(Self { fd: unsafe { OwnedFd::from_raw_fd(fd) } });
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            Some(libc::ENOSYS) => return Err(NoUserfault::Absent),
            Some(libc::EPERM) => {}
            _ => return Err(NoUserfault::Other(error)),
        }
        // Without the privilege there is the device, whose permissions an operator can set.
        let device = std::fs::File::open("/dev/userfaultfd").map_err(|_| NoUserfault::Denied)?;
        // SAFETY: this ioctl takes flags, not a pointer.
        let fd = unsafe { libc::ioctl(device.as_raw_fd(), USERFAULTFD_IOC_NEW, flags) };
        if fd < 0 {
            return Err(NoUserfault::Denied);
        }
        // SAFETY: `fd` was just created and nobody else owns it.
        Ok(Self { fd: unsafe { OwnedFd::from_raw_fd(fd) } })
    }

    fn agree(&self, features: u64) -> io::Result<u64> {
        let mut argument = ApiArgument { api: API, features, ioctls: 0 };
        self.ioctl(UFFDIO_API, &mut argument)?;
        Ok(argument.features)
    }

    fn ioctl<T>(&self, number: u64, argument: &mut T) -> io::Result<()> {
        // SAFETY: each number above carries the size of its argument, and is only used
        // with that type; the kernel reads and writes no more than that.
        let result = unsafe { libc::ioctl(self.fd.as_raw_fd(), number, &raw mut *argument) };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// Reports faults in `len` bytes at `start` from now on: missing pages, pages that are
    /// only not mapped, and stores to write-protected ones.
    ///
    /// # Errors
    ///
    /// The operating system's.
    pub fn register(&self, start: u64, len: u64) -> io::Result<()> {
        self.register_for(start, len, MODE_MISSING | MODE_MINOR | MODE_WP)
    }

    /// Reports only stores to write-protected pages; what is missing is the kernel's business. For
    /// measurements: a guest's pages would be served behind our back.
    ///
    /// # Errors
    ///
    /// The operating system's.
    pub fn register_write_protect(&self, start: u64, len: u64) -> io::Result<()> {
        self.register_for(start, len, MODE_WP)
    }

    fn register_for(&self, start: u64, len: u64, mode: u64) -> io::Result<()> {
        self.ioctl(
            UFFDIO_REGISTER,
            &mut RangeModeResult { range: Range { start, len }, mode, result: 0 },
        )
    }

    /// Reports no more faults in `len` bytes at `start`: from now on the kernel serves them, from
    /// what is in the object. Who sleeps on one is woken and tries again; what was
    /// write-protected there *is not any more*. Whoever calls this says why that is harmless.
    ///
    /// # Errors
    ///
    /// The operating system's; `ENOMEM` when the process has too many mappings to split one.
    pub fn unregister(&self, start: u64, len: u64) -> io::Result<()> {
        self.ioctl(UFFDIO_UNREGISTER, &mut Range { start, len })
    }

    /// Whether a fault waits to be read.
    #[must_use]
    pub fn has_fault(&self) -> bool {
        let mut entry = libc::pollfd { fd: self.fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one initialised entry that outlives the call.
        let ready = unsafe { libc::poll(&raw mut entry, 1, 0) };
        ready == 1 && entry.revents & libc::POLLIN != 0
    }

    /// Takes waiting faults, `faults.len()` at most, without sleeping; returns how many.
    ///
    /// # Errors
    ///
    /// The operating system's; none waiting is not an error.
    pub fn read(&self, faults: &mut [Fault; BATCH]) -> io::Result<usize> {
        let mut messages = [Message::default(); BATCH];
        // SAFETY: `messages` is plain integers, writable for its whole size.
        let bytes = unsafe {
            libc::read(self.fd.as_raw_fd(), messages.as_mut_ptr().cast(), size_of_val(&messages))
        };
        let Ok(bytes) = usize::try_from(bytes) else {
            let error = io::Error::last_os_error();
            return match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Ok(0),
                _ => Err(error),
            };
        };
        let mut count = 0;
        for message in &messages[..bytes / size_of::<Message>()] {
            if message.event != EVENT_PAGEFAULT {
                return Err(io::Error::other(format!(
                    "unexpected userfaultfd event {:#x}",
                    message.event
                )));
            }
            faults[count] = Fault {
                address: message.address,
                is_write: message.flags & FLAG_WRITE != 0,
                is_write_protect: message.flags & FLAG_WP != 0,
                thread: message.thread,
            };
            count += 1;
        }
        Ok(count)
    }

    /// Maps fresh zero pages and wakes who waits for them.
    ///
    /// # Errors
    ///
    /// The operating system's.
    pub fn zero(&self, start: u64, len: u64) -> io::Result<Installed> {
        self.install(
            UFFDIO_ZEROPAGE,
            RangeModeResult { range: Range { start, len }, mode: 0, result: 0 },
        )
    }

    /// Maps pages that are in the object already and wakes who waits for them.
    ///
    /// # Errors
    ///
    /// The operating system's; `EFAULT` when a page is *not* in the object.
    pub fn map(&self, start: u64, len: u64, writable: bool) -> io::Result<Installed> {
        let mode = if writable { 0 } else { CONTINUE_MODE_WP };
        self.install(
            UFFDIO_CONTINUE,
            RangeModeResult { range: Range { start, len }, mode, result: 0 },
        )
    }

    fn install(&self, number: u64, mut argument: RangeModeResult) -> io::Result<Installed> {
        match self.ioctl(number, &mut argument) {
            Ok(()) => Ok(Installed::Bytes(argument.range.len)),
            Err(error) => match (error.raw_os_error(), u64::try_from(argument.result)) {
                // The kernel stopped part of the way: what it did counts.
                (_, Ok(bytes)) if bytes > 0 => Ok(Installed::Bytes(bytes)),
                (Some(libc::EEXIST), _) => Ok(Installed::AlreadyThere),
                (Some(libc::EAGAIN), _) => Ok(Installed::Busy),
                _ => Err(error),
            },
        }
    }

    /// Forbids (or allows again, waking who waits) stores to what is mapped.
    ///
    /// # Errors
    ///
    /// The operating system's.
    pub fn set_write_protection(&self, start: u64, len: u64, protect: bool) -> io::Result<()> {
        let mode = if protect { WRITEPROTECT_MODE_WP } else { 0 };
        let mut argument = RangeMode { range: Range { start, len }, mode };
        loop {
            match self.ioctl(UFFDIO_WRITEPROTECT, &mut argument) {
                // The mapping is being changed elsewhere in this process; it ends by itself.
                Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => {}
                done => return done,
            }
        }
    }

    /// Wakes whoever sleeps on a fault in this range, to try again.
    ///
    /// # Errors
    ///
    /// The operating system's.
    pub fn wake(&self, start: u64, len: u64) -> io::Result<()> {
        self.ioctl(UFFDIO_WAKE, &mut Range { start, len })
    }
}

/// Faults taken by one read: as many as vcpus are likely to wait at once.
pub const BATCH: usize = 16;

impl AsRawFd for Userfault {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}
