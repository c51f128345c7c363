//! Reading the small files that settings name: tokens, keys, certificates and the settings
//! themselves.
//!
//! Promises that no file takes more memory than [`FILE_BYTES_MAX`]: a wrong path may name a device
//! that has no end.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// Longest file, in bytes: a certificate chain takes a few KiB.
pub const FILE_BYTES_MAX: usize = 1024 * 1024;

/// The bytes of a file.
///
/// # Errors
/// The kernel's error, or `FileTooLarge`.
pub fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(FILE_BYTES_MAX as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > FILE_BYTES_MAX {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "the file is larger than 1 MiB"));
    }
    Ok(bytes)
}

/// The text of a file.
///
/// # Errors
/// As [`read`], or `InvalidData` for a file that is not UTF-8.
pub fn read_text(path: &Path) -> io::Result<String> {
    String::from_utf8(read(path)?)
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "the file is not text in UTF-8"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_without_an_end_is_not_read_whole() {
        assert_eq!(read(Path::new("/dev/zero")).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
        assert!(read(Path::new("/dev/null")).unwrap().is_empty());
        assert_eq!(read(Path::new("/nowhere")).unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn the_bound_is_the_longest_file() {
        let path = std::env::temp_dir().join(format!("hydrant-files-{}", std::process::id()));
        for (length, fits) in [(FILE_BYTES_MAX, true), (FILE_BYTES_MAX + 1, false)] {
            std::fs::write(&path, vec![b'x'; length]).unwrap();
            assert_eq!(read_text(&path).is_ok_and(|text| text.len() == length), fits, "{length}");
        }
        std::fs::write(&path, b"\xff").unwrap();
        assert_eq!(read_text(&path).unwrap_err().kind(), io::ErrorKind::InvalidData);
        std::fs::remove_file(path).unwrap();
    }
}
