//! The files that are loaded, and the unwinding of copied stacks.
//!
//! A stack is unwound by the tables (`.eh_frame`) that every program carries, so no frame pointers
//! are needed. Unwinding reads the copy alone: whatever the tables say, it cannot touch memory that
//! is not mapped.

use std::ffi::{CStr, OsStr, c_int, c_void};
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::slice;

use framehop::{
    CacheNative, ExplicitModuleSectionInfo, FrameAddress, MayAllocateDuringUnwind, Unwinder, UnwinderNative,
};

use super::signal::Copied;

/// The program's own file, even when another file has its name by now. The loader has no name for
/// it.
const PROGRAM: &str = "/proc/self/exe";
/// Most frames of a stack that are unwound.
const FRAMES_MAX: usize = 256;

/// A loaded file: the program, a library, or the kernel's own (the vDSO).
#[derive(Debug)]
pub(super) struct Module {
    /// The loader's name for it.
    pub(super) path: PathBuf,
    /// The addresses of its code.
    pub(super) code: Range<u64>,
    /// The difference between an address in memory and the address in the file.
    pub(super) bias: u64,
    /// `.eh_frame_hdr` and `.eh_frame`, each with its address; `None` when the file has none in the
    /// usual form.
    unwind: Option<[(u64, &'static [u8]); 2]>,
}

impl Module {
    /// The file's name.
    pub(super) fn name(&self) -> String {
        let path = if self.path == Path::new(PROGRAM) { std::env::current_exe().ok() } else { None };
        let path = path.as_ref().unwrap_or(&self.path);
        path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
    }
}

/// All loaded files, in the loader's order: the program comes first.
#[derive(Debug)]
pub(super) struct Modules(pub(super) Vec<Module>);

impl Modules {
    /// The files that are loaded now. Nothing in this program unloads a library.
    pub(super) fn loaded() -> Self {
        let mut modules = Vec::new();
        // SAFETY: the callback gets the pointer given here, while `modules` is alive and not
        // otherwise used.
        unsafe { libc::dl_iterate_phdr(Some(note), (&raw mut modules).cast()) };
        Self(modules)
    }

    /// The index of the module whose code is at this address.
    pub(super) fn find(&self, address: u64) -> Option<usize> {
        self.0.iter().position(|module| module.code.contains(&address))
    }
}

/// Adds one module to the `Vec<Module>` behind `modules`.
unsafe extern "C" fn note(info: *mut libc::dl_phdr_info, _: usize, modules: *mut c_void) -> c_int {
    // SAFETY: the loader passes a valid description, and `Modules::loaded` the vector.
    let (info, modules) = unsafe { (&*info, &mut *modules.cast::<Vec<Module>>()) };
    // SAFETY: the name is a C string that lives as long as the module.
    let name = unsafe { CStr::from_ptr(info.dlpi_name) };
    // SAFETY: the loader says how many headers there are.
    let headers = unsafe { slice::from_raw_parts(info.dlpi_phdr, usize::from(info.dlpi_phnum)) };
    let range = |header: &libc::Elf64_Phdr| {
        let start = info.dlpi_addr.wrapping_add(header.p_vaddr);
        start..start + header.p_memsz
    };
    let mut segments = headers.iter().filter(|header| header.p_type == libc::PT_LOAD);
    let Some(code) = segments.clone().find(|header| header.p_flags & libc::PF_X != 0).map(range) else { return 0 };
    let path = if name.is_empty() { OsStr::new(PROGRAM) } else { OsStr::from_bytes(name.to_bytes()) };
    let unwind = headers.iter().find(|header| header.p_type == libc::PT_GNU_EH_FRAME).and_then(|header| {
        let index = range(header);
        let holder = segments.find(|segment| range(segment).contains(&index.start)).map(range)?;
        // SAFETY: the loader has mapped the segment, readable, for as long as the module is loaded,
        // which is for ever.
        let bytes = |from: u64, to: u64| unsafe { slice::from_raw_parts(from as *const u8, (to - from) as usize) };
        // The usual form is version 1, with a pointer to `.eh_frame` that is four bytes wide and
        // relative to itself.
        let [1, 0x1b, _, _, pointer @ ..] = bytes(index.start, index.start + 8) else { return None };
        let pointer = i64::from(i32::from_ne_bytes(pointer.try_into().ok()?));
        let table = (index.start + 4).checked_add_signed(pointer).filter(|table| holder.contains(table))?;
        Some([(index.start, bytes(index.start, index.end)), (table, bytes(table, holder.end))])
    });
    modules.push(Module { path: path.into(), code, bias: info.dlpi_addr, unwind });
    0
}

/// Unwinds stacks; remembers what it has learned about each address.
pub(super) struct StackUnwinder {
    unwinder: UnwinderNative<&'static [u8], MayAllocateDuringUnwind>,
    cache: CacheNative<MayAllocateDuringUnwind>,
}

impl StackUnwinder {
    pub(super) fn new(modules: &Modules) -> Self {
        let mut unwinder = UnwinderNative::new();
        for module in &modules.0 {
            let Some([index, table]) = module.unwind else { continue };
            let range = |(start, bytes): (u64, &[u8])| {
                let start = start.wrapping_sub(module.bias);
                Some(start..start + bytes.len() as u64)
            };
            let sections = ExplicitModuleSectionInfo {
                eh_frame_hdr_svma: range(index),
                eh_frame_hdr: Some(index.1),
                eh_frame_svma: range(table),
                eh_frame: Some(table.1),
                ..Default::default()
            };
            let name = module.path.display().to_string();
            unwinder.add_module(framehop::Module::new(name, module.code.clone(), module.bias, sections));
        }
        Self { unwinder, cache: CacheNative::new() }
    }

    /// Addresses inside the instructions that were running or calling, the innermost first; and
    /// whether unwinding reached the beginning of the stack.
    pub(super) fn unwind(&mut self, copied: &Copied) -> (Vec<u64>, bool) {
        let mut read = |address: u64| copied.word(address).ok_or(());
        let mut frames = self.unwinder.iter_frames(copied.pc, copied.registers(), &mut self.cache, &mut read);
        let mut stack = Vec::new();
        loop {
            match frames.next() {
                Ok(Some(frame)) if stack.len() < FRAMES_MAX => stack.push(FrameAddress::address_for_lookup(frame)),
                Ok(None) => return (stack, true),
                _ => return (stack, false),
            }
        }
    }
}
