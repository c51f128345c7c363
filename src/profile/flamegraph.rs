//! A flamegraph as SVG: one box for each function above its caller, as wide as its share.
//!
//! The picture has no script and depends on the profile alone: the same stacks give the same bytes.
//! Hovering shows a name in full. Boxes that are too narrow to be seen are left out.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::make::{Profile, Value};

/// The picture's width, and the height of one row, in pixels.
const WIDTH: f64 = 1200.0;
const ROW: f64 = 17.0;
/// Space above the first row, for the title; and around everything; in pixels.
const HEAD: f64 = 44.0;
const MARGIN: f64 = 10.0;
/// Narrower boxes, less than a thousandth of the whole, are left out, in pixels: a picture stays
/// below 150 KiB.
const NARROWEST: f64 = 1.18;
/// The approximate width of a letter of the labels, in pixels.
const LETTER: f64 = 6.7;

/// A function, called along one path.
#[derive(Default)]
struct Node<'a> {
    total: i64,
    callees: BTreeMap<&'a str, Self>,
}

impl<'a> Node<'a> {
    fn add(&mut self, stack: impl Iterator<Item = &'a str>, amount: i64) {
        self.total += amount;
        let mut node = self;
        for name in stack {
            node = node.callees.entry(name).or_default();
            node.total += amount;
        }
    }

    /// The number of rows, without boxes that are too narrow.
    fn depth(&self, scale: f64) -> usize {
        let callees = self.callees.values().filter(|callee| callee.total as f64 * scale >= NARROWEST);
        1 + callees.map(|callee| callee.depth(scale)).max().unwrap_or(0)
    }
}

/// The picture of the value with this index. Its outermost row is the whole; the next row is the
/// threads, where the profile has any.
pub(super) fn write(profile: &Profile, value: usize) -> String {
    let mut root = Node::default();
    for (index, sample) in profile.measured.samples.iter().enumerate() {
        let stack = sample.thread.as_deref().into_iter().chain(profile.symbols.names(index));
        root.add(stack, sample.values[value]);
    }
    let measured = &profile.measured;
    draw(&root, measured.values[value], &measured.comments.join("; "))
}

fn draw(root: &Node<'_>, value: Value, comment: &str) -> String {
    let scale = if root.total > 0 { (WIDTH - 2.0 * MARGIN) / root.total as f64 } else { 0.0 };
    let height = HEAD + ROW * root.depth(scale) as f64 + MARGIN;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" viewBox=\"0 0 {WIDTH} {height}\" \
         font-family=\"monospace\" font-size=\"11\">\n<rect width=\"100%\" height=\"100%\" fill=\"#fdfaf4\"/>\n\
         <text x=\"{MARGIN}\" y=\"20\" font-size=\"14\">{}: {}</text>\n<text x=\"{MARGIN}\" y=\"36\" fill=\"#666\">{}</text>\n",
        value.what,
        amount(root.total, value.unit),
        escape(comment),
    );
    let picture = Picture { scale, bottom: height - MARGIN - ROW, total: root.total, unit: value.unit };
    picture.draw(&mut out, "all", root, MARGIN, 0);
    out.push_str("</svg>\n");
    out
}

struct Picture {
    scale: f64,
    bottom: f64,
    total: i64,
    unit: &'static str,
}

impl Picture {
    /// Draws a function and its callees; `x` in pixels, `row` counted from the bottom.
    fn draw(&self, out: &mut String, name: &str, node: &Node<'_>, x: f64, row: usize) {
        let width = node.total as f64 * self.scale;
        if width < NARROWEST {
            return;
        }
        let y = self.bottom - ROW * row as f64;
        let share = 100.0 * node.total as f64 / self.total as f64;
        // Writing to a string cannot fail.
        let _ = write!(
            out,
            "<g><title>{} ({}, {share:.1} %)</title><rect x=\"{x:.1}\" y=\"{y:.0}\" width=\"{:.1}\" height=\"16\" fill=\"{}\"/>",
            escape(name),
            amount(node.total, self.unit),
            width - 0.3,
            colour(name),
        );
        let letters = ((width - 4.0) / LETTER) as usize;
        if letters >= 4 {
            let _ = write!(
                out,
                "<text x=\"{:.1}\" y=\"{:.0}\">{}</text>",
                x + 2.0,
                y + 12.0,
                escape(&label(name, letters))
            );
        }
        out.push_str("</g>\n");
        let mut x = x;
        for (name, callee) in &node.callees {
            self.draw(out, name, callee, x, row + 1);
            x += callee.total as f64 * self.scale;
        }
    }
}

/// The name, or as much of its end as fits: the end says more than the path before it.
fn label(name: &str, letters: usize) -> String {
    let length = name.chars().count();
    if length <= letters {
        return name.to_owned();
    }
    let end: String = name.chars().skip(length - letters + 1).collect();
    format!("…{end}")
}

/// A number with its unit, in readable form.
fn amount(number: i64, unit: &str) -> String {
    let number_f = number as f64;
    match unit {
        "bytes" if number >= 1 << 20 => format!("{:.2} MiB", number_f / f64::from(1 << 20)),
        "bytes" if number >= 1 << 10 => format!("{:.1} KiB", number_f / f64::from(1 << 10)),
        "nanoseconds" => format!("{:.2} s", number_f / 1e9),
        _ => format!("{number} {unit}"),
    }
}

/// A colour that is the same for all functions of a crate, by its name: orange for this program,
/// yellow to red for other crates, and blue for names without a path (C, the entry to the kernel).
fn colour(name: &str) -> String {
    let path = name.trim_start_matches(['<', '&', '*']);
    let (crate_name, rest) = path.split_once("::").unwrap_or(("", path));
    // FNV-1a is stable between versions of the compiler, unlike the standard library's hash.
    let hash = |text: &str| {
        text.bytes().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
    };
    let shade = hash(rest) % 16;
    match crate_name {
        "" => format!("hsl(205,55%,{}%)", 66 + shade),
        "hydrant" => format!("hsl(24,92%,{}%)", 56 + shade),
        _ => format!("hsl({},62%,{}%)", 38 + hash(crate_name) % 20, 64 + shade),
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    const BYTES: Value = Value { what: "inuse_space", unit: "bytes" };

    #[test]
    fn boxes_are_as_wide_as_their_share_and_lie_on_their_callers() {
        let mut root = Node::default();
        root.add(["main", "hydrant::a<T>"].into_iter(), 3 << 20);
        root.add(["main", "b"].into_iter(), 1 << 20);
        root.add(["main", "unseen"].into_iter(), 1);
        let svg = draw(&root, BYTES, "a & b");
        assert!(svg.starts_with("<svg xmlns=") && svg.ends_with("</svg>\n") && svg.contains("a &amp; b"), "{svg}");
        let boxes: Vec<_> = svg.lines().filter(|line| line.starts_with("<g>")).collect();
        assert_eq!(boxes.len(), 4, "{svg}");
        let expect = [
            ("<title>all (4.00 MiB, 100.0 %)</title>", "x=\"10.0\" y=\"78\" width=\"1179.7\""),
            ("<title>main (4.00 MiB, 100.0 %)</title>", "x=\"10.0\" y=\"61\" width=\"1179.7\""),
            ("<title>b (1.00 MiB, 25.0 %)</title>", "x=\"10.0\" y=\"44\" width=\"294.7\""),
            ("<title>hydrant::a&lt;T&gt; (3.00 MiB, 75.0 %)</title>", "x=\"305.0\" y=\"44\" width=\"884.7\""),
        ];
        for (found, (title, position)) in boxes.iter().zip(expect) {
            assert!(found.contains(title) && found.contains(position), "{found}");
        }
    }

    #[test]
    fn an_empty_profile_is_a_picture_too() {
        let svg = draw(&Node::default(), BYTES, "");
        assert!(svg.contains("0 bytes") && svg.ends_with("</svg>\n") && !svg.contains("NaN"), "{svg}");
    }

    #[test]
    fn a_label_keeps_the_end_of_a_name() {
        assert_eq!((label("a::b", 4).as_str(), label("aa::bb", 4).as_str()), ("a::b", "…:bb"));
    }
}
