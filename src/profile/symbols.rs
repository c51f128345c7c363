//! From addresses to the names of functions, inlined ones too.
//!
//! Reads the debug information of the loaded files while a profile is made, and keeps nothing
//! afterwards. An address without a name gets the name of its file in brackets.

use std::collections::HashMap;

use addr2line::{Loader, demangle_auto};

use super::modules::Modules;

/// A function, under its name in the source.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Function {
    pub(super) name: String,
    /// Empty when unknown.
    pub(super) file: String,
}

/// A line of a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Line {
    /// Index into [`Symbols::functions`].
    pub(super) function: usize,
    /// 0 when unknown.
    pub(super) line: u32,
}

/// The known facts about one address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Location {
    pub(super) address: u64,
    /// Index into the modules.
    pub(super) module: Option<usize>,
    /// The innermost inlined function first, the function that contains them last; never empty.
    pub(super) lines: Vec<Line>,
}

/// The functions and locations of a profile.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Symbols {
    pub(super) functions: Vec<Function>,
    pub(super) locations: Vec<Location>,
    /// For each stack, the indices of its locations, the innermost first.
    pub(super) stacks: Vec<Vec<usize>>,
}

impl Symbols {
    /// The functions of a stack, from the outermost to the innermost.
    pub(super) fn names(&self, stack: usize) -> impl Iterator<Item = &str> {
        let lines = self.stacks[stack].iter().rev().flat_map(|&location| self.locations[location].lines.iter().rev());
        lines.map(|line| self.functions[line.function].name.as_str())
    }

    /// Removes the innermost functions that are noise from every stack, but never a whole stack.
    pub(super) fn strip(&mut self, is_noise: impl Fn(&str) -> bool) {
        let Self { functions, locations, stacks } = self;
        for stack in stacks {
            let is_noise = |line: &Line| is_noise(&functions[line.function].name);
            let noise = stack.iter().take_while(|&&location| locations[location].lines.iter().all(is_noise)).count();
            stack.drain(..noise.min(stack.len().saturating_sub(1)));
            if let Some(&innermost) = stack.first() {
                let lines = &mut locations[innermost].lines;
                let noise = lines.iter().take_while(|line| is_noise(line)).count();
                lines.drain(..noise.min(lines.len() - 1));
            }
        }
    }
}

/// Names every address of `stacks`, each once.
pub(super) fn resolve<'a>(modules: &Modules, stacks: impl Iterator<Item = &'a [u64]>) -> Symbols {
    let mut resolver = Resolver {
        modules,
        loaders: modules.0.iter().map(|_| None).collect(),
        of_function: HashMap::new(),
        symbols: Symbols::default(),
    };
    let mut of_address = HashMap::new();
    for stack in stacks {
        let locations = stack
            .iter()
            .map(|&address| *of_address.entry(address).or_insert_with(|| resolver.locate(address)))
            .collect();
        resolver.symbols.stacks.push(locations);
    }
    resolver.symbols
}

struct Resolver<'a> {
    modules: &'a Modules,
    /// The debug information of each module: `None` until it is needed, `Some(None)` when it cannot
    /// be read.
    loaders: Vec<Option<Option<Loader>>>,
    of_function: HashMap<Function, usize>,
    symbols: Symbols,
}

impl Resolver<'_> {
    /// The index of the location of an address.
    fn locate(&mut self, address: u64) -> usize {
        let module = self.modules.find(address);
        let mut found = module.map_or_else(Vec::new, |module| self.look_up(module, address));
        if found.is_empty() {
            let name = match module {
                Some(module) => format!("[{}]", self.modules.0[module].name()),
                None => "[unknown]".to_owned(),
            };
            found.push((Function { name, file: String::new() }, 0));
        }
        let lines = found.into_iter().map(|(function, line)| Line { function: self.number(function), line }).collect();
        self.symbols.locations.push(Location { address, module, lines });
        self.symbols.locations.len() - 1
    }

    /// The functions at an address of a module, the innermost first, with their lines; empty
    /// without debug information.
    fn look_up(&mut self, module: usize, address: u64) -> Vec<(Function, u32)> {
        let path = &self.modules.0[module].path;
        let Some(loader) = self.loaders[module].get_or_insert_with(|| Loader::new(path).ok()) else {
            return Vec::new();
        };
        let address = address.wrapping_sub(self.modules.0[module].bias);
        let symbol = || loader.find_symbol(address).map(|name| shorten(&demangle_auto(name.into(), None)));
        let mut found = Vec::new();
        if let Ok(mut frames) = loader.find_frames(address) {
            while let Ok(Some(frame)) = frames.next() {
                let (file, line) = frame
                    .location
                    .map_or((None, 0), |position| (position.file.map(str::to_owned), position.line.unwrap_or(0)));
                let name = frame.function.and_then(|name| Some(shorten(&name.demangle().ok()?)));
                // Only the outermost function can be without a name; the symbol names it then.
                if let Some(name) = name.or_else(symbol) {
                    found.push((Function { name, file: file.unwrap_or_default() }, line));
                }
            }
        }
        if found.is_empty() {
            found.extend(symbol().map(|name| (Function { name, file: String::new() }, 0)));
        }
        found
    }

    fn number(&mut self, function: Function) -> usize {
        *self.of_function.entry(function).or_insert_with_key(|function| {
            self.symbols.functions.push(function.clone());
            self.symbols.functions.len() - 1
        })
    }
}

/// A name without its generic arguments, which may be thousands of letters long.
fn shorten(name: &str) -> String {
    let mut short = String::with_capacity(name.len());
    let (mut depth, mut before) = (0, ' ');
    for letter in name.chars() {
        // The type that owns a method is in angle brackets too; arguments are those behind a name
        // or a path.
        let opens = letter == '<' && (depth > 0 || before.is_alphanumeric() || "_:}])>".contains(before));
        depth += usize::from(opens);
        if depth == 0 {
            short.push(letter);
        } else if opens && depth == 1 && short.ends_with("::") {
            short.truncate(short.len() - 2);
        } else if letter == '>' && before != '-' {
            depth -= 1;
        }
        before = letter;
    }
    short
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_without_parameters() {
        for (name, short) in [
            ("send", "send"),
            (
                "<alloc::boxed::Box<dyn FnOnce<(), Output = ()> + Send> as FnOnce<()>>::call_once",
                "<alloc::boxed::Box as FnOnce>::call_once",
            ),
            ("<a::Guard>::block_on::<Pin<&mut <b::Shard>::run<fn(&u8) -> u16>::{closure#0}>>", "<a::Guard>::block_on"),
            ("<a::Shard>::run::<fn(u8) -> u16>::{closure#0}", "<a::Shard>::run::{closure#0}"),
            ("<&std::net::TcpStream as std::io::Write>::write", "<&std::net::TcpStream as std::io::Write>::write"),
            ("<[T]>::sort::<u8>", "<[T]>::sort"),
        ] {
            assert_eq!(shorten(name), short);
        }
    }

    #[test]
    fn a_function_of_the_program_and_one_of_a_library_have_names() {
        let modules = Modules::loaded();
        let program = a_function_of_the_program_and_one_of_a_library_have_names as *const () as u64;
        let library = libc::send as *const () as u64;
        let symbols = resolve(&modules, [&[library, program][..], &[program], &[1]].into_iter());
        let names: Vec<Vec<_>> = (0..3).map(|stack| symbols.names(stack).collect()).collect();
        let here = "hydrant::profile::symbols::tests::a_function_of_the_program_and_one_of_a_library_have_names";
        assert_eq!(names[0].first(), Some(&here), "{names:?}");
        assert!(names[0].last().is_some_and(|name| name.ends_with("send")), "{names:?}");
        assert_eq!((names[1].as_slice(), names[2].as_slice()), (&[here][..], &["[unknown]"][..]));
        let line = symbols.locations[symbols.stacks[1][0]].lines[0];
        assert!(line.line > 0 && symbols.functions[line.function].file.ends_with("symbols.rs"));
    }

    #[test]
    fn noise_is_stripped_but_never_a_whole_stack() {
        let function = |name: &str| Function { name: name.to_owned(), file: String::new() };
        let location = |functions: &[usize]| Location {
            address: 1,
            module: None,
            lines: functions.iter().map(|&function| Line { function, line: 0 }).collect(),
        };
        let mut symbols = Symbols {
            functions: ["malloc", "alloc", "work", "main"].map(function).to_vec(),
            locations: vec![location(&[0]), location(&[1, 2]), location(&[3])],
            stacks: vec![vec![0, 1, 2], vec![0], vec![2]],
        };
        symbols.strip(|name| name.ends_with("alloc"));
        let names = |stack| symbols.names(stack).collect::<Vec<_>>();
        assert_eq!((names(0), names(1), names(2)), (vec!["main", "work"], vec!["malloc"], vec!["main"]));
    }
}
