//! pprof's format: a protobuf message, gzipped.
//!
//! The numbers of the fields are those of `profile.proto` (github.com/google/pprof/proto). The
//! message is written by hand, because it is small and never read here.

use std::collections::HashMap;
use std::io::{self, Write};
use std::time::SystemTime;

use flate2::Compression;
use flate2::write::GzEncoder;

use super::make::{Profile, Value};
use super::modules::Modules;

/// A protobuf message, written field by field.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    /// A field of an integer type. Zero is the default and not written.
    fn number(&mut self, field: u64, value: i64) {
        if value != 0 {
            self.varint(field << 3);
            self.varint(value.cast_unsigned());
        }
    }

    /// A field of type string, bytes, or message.
    fn bytes(&mut self, field: u64, bytes: &[u8]) {
        self.varint(field << 3 | 2);
        self.varint(bytes.len() as u64);
        self.0.extend(bytes);
    }

    /// A field of a message type.
    fn message(&mut self, field: u64, fill: impl FnOnce(&mut Self)) {
        let mut inner = Self::default();
        fill(&mut inner);
        self.bytes(field, &inner.0);
    }

    /// A repeated field of an integer type.
    fn numbers(&mut self, field: u64, values: impl Iterator<Item = i64>) {
        self.message(field, |packed| values.for_each(|value| packed.varint(value.cast_unsigned())));
    }
}

/// The string table: each string once, the first one empty, as the format demands.
#[derive(Default)]
struct Strings<'a> {
    all: Vec<&'a str>,
    numbers: HashMap<&'a str, i64>,
}

impl<'a> Strings<'a> {
    fn number(&mut self, text: &'a str) -> i64 {
        *self.numbers.entry(text).or_insert_with(|| {
            self.all.push(text);
            self.all.len() as i64 - 1
        })
    }
}

/// The profile in the format of `go tool pprof`.
///
/// # Errors
/// None in practice, because it writes to memory.
pub(super) fn write(profile: &Profile, modules: &Modules) -> io::Result<Vec<u8>> {
    let mut gzip = GzEncoder::new(Vec::new(), Compression::default());
    gzip.write_all(&message(profile, modules))?;
    gzip.finish()
}

fn message(profile: &Profile, modules: &Modules) -> Vec<u8> {
    let Profile { measured, symbols } = profile;
    let module_names: Vec<_> = modules.0.iter().map(super::modules::Module::name).collect();
    let mut strings = Strings::default();
    strings.number("");
    let mut out = Message::default();
    let value_type = |message: &mut Message, strings: &mut Strings<'_>, value: Value| {
        message.number(1, strings.number(value.what));
        message.number(2, strings.number(value.unit));
    };
    for &value in measured.values {
        out.message(1, |message| value_type(message, &mut strings, value));
    }
    // Identifiers count from 1: 0 means none.
    let id = |index: usize| index as i64 + 1;
    for (sample, stack) in measured.samples.iter().zip(&symbols.stacks) {
        out.message(2, |message| {
            message.numbers(1, stack.iter().map(|&location| id(location)));
            message.numbers(2, sample.values.iter().copied());
            if let Some(thread) = &sample.thread {
                message.message(3, |label| {
                    label.number(1, strings.number("thread"));
                    label.number(2, strings.number(thread));
                });
            }
        });
    }
    for (index, (module, name)) in modules.0.iter().zip(&module_names).enumerate() {
        out.message(3, |message| {
            message.number(1, id(index));
            message.number(2, module.code.start.cast_signed());
            message.number(3, module.code.end.cast_signed());
            message.number(4, module.code.start.wrapping_sub(module.bias).cast_signed());
            message.number(5, strings.number(name));
            // The profile has functions, files, lines and inlined functions: a reader need not look
            // them up.
            (7..=10).for_each(|field| message.number(field, 1));
        });
    }
    for (index, location) in symbols.locations.iter().enumerate() {
        out.message(4, |message| {
            message.number(1, id(index));
            message.number(2, location.module.map_or(0, id));
            message.number(3, location.address.cast_signed());
            for line in &location.lines {
                message.message(4, |message| {
                    message.number(1, id(line.function));
                    message.number(2, i64::from(line.line));
                });
            }
        });
    }
    for (index, function) in symbols.functions.iter().enumerate() {
        out.message(5, |message| {
            message.number(1, id(index));
            message.number(2, strings.number(&function.name));
            message.number(4, strings.number(&function.file));
        });
    }
    let started = measured.started.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    out.number(9, started.as_nanos() as i64);
    out.number(10, measured.duration.as_nanos() as i64);
    out.message(11, |message| value_type(message, &mut strings, measured.period.0));
    out.number(12, measured.period.1);
    for comment in &measured.comments {
        out.number(13, strings.number(comment));
    }
    // The default value is the last one, which most readers want to see.
    out.number(14, measured.values.last().map_or(0, |value| strings.number(value.what)));
    // Written last, because everything above has added strings.
    strings.all.iter().for_each(|text| out.bytes(6, text.as_bytes()));
    out.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_varints_and_messages_have_a_length() {
        let mut message = Message::default();
        message.number(1, 150);
        message.number(2, 0);
        message.bytes(2, b"testing");
        message.numbers(4, [3, 270, 86_942].into_iter());
        message.number(5, -1);
        // The first three are the examples of the protobuf encoding's own document.
        let mut expected = b"\x08\x96\x01\x12\x07testing\x22\x06\x03\x8e\x02\x9e\xa7\x05\x28".to_vec();
        expected.extend([0xff; 9]);
        expected.push(1);
        assert_eq!(message.0, expected);
    }
}
