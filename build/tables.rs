//! The tables of kernels: `kernels.def` of each architecture, as Rust.

use std::fmt::Write as _;
use std::path::Path;

use super::{ARCHITECTURES, out_dir, read, write};

/// The names of the element types: those of `FOR_EACH_ELEMENT` in `kernels/common/elements.cuh`, and the fields of
/// `PerElement` in `src/kernels`.
const ELEMENTS: &[&str] = &["f16", "bf16"];

/// The names of what a launch of `prefill.cu` can be known to be: those of its `PREFILL`, and the fields of `PerVariant` in
/// `src/kernels`.
const VARIANTS: &[&str] = &["dense", "horizon", "any"];

/// The names of what `prefill.cu` of `sm90` has for all keys and for those that a horizon keeps, and the fields of `PerReach` in
/// `src/kernels`.
const REACHES: &[&str] = &["prefill", "horizon"];

/// What stands for several kernels in a name: the type that has one for each, and what they are called. The outermost first.
const CHOICES: &[(&str, &str, &[&str])] = &[
    ("{variant}", "PerVariant", VARIANTS),
    ("{reach}", "PerReach", REACHES),
    ("{element}", "PerElement", ELEMENTS),
];

/// The kernels of one macro of a table.
struct Family<'a> {
    name: &'a str,
    columns: Vec<&'a str>,
    /// The .cu file, and what its kernels are called.
    file: &'a str,
    kernel: &'a str,
    lines: Vec<Vec<&'a str>>,
}

impl<'a> Family<'a> {
    /// Reads the `#define`s and the lines of a table.
    fn all(text: &'a str) -> Result<Vec<Self>, String> {
        let cells = |list: &'a str| -> Vec<&'a str> { list.split(',').map(str::trim).collect() };
        let mut families: Vec<Self> = Vec::new();
        for line in text.lines() {
            let bad = || format!("{line:?} is no line of a table");
            if let Some(definition) = line.strip_prefix("#define ") {
                let (name, rest) = definition.split_once('(').ok_or_else(bad)?;
                let (columns, rest) = rest.split_once(')').ok_or_else(bad)?;
                let (file, kernel) = rest
                    .trim_start()
                    .strip_prefix("// ")
                    .and_then(|rest| rest.split_once(": "))
                    .ok_or_else(bad)?;
                families.push(Self {
                    name,
                    columns: cells(columns),
                    file,
                    kernel,
                    lines: Vec::new(),
                });
            } else if !line.is_empty() && !line.starts_with("//") && !line.starts_with('#') {
                let (name, rest) = line.split_once('(').ok_or_else(bad)?;
                let values = cells(rest.strip_suffix(')').ok_or_else(bad)?);
                let family = families.iter_mut().find(|family| family.name == name);
                let family = family.ok_or_else(bad)?;
                if values.len() != family.columns.len()
                    || values.iter().any(|value| value.parse::<u32>().is_err())
                {
                    return Err(bad());
                }
                family.lines.push(values);
            }
        }
        Ok(families)
    }

    /// `PAGE_RADII` as `PageRadii`.
    fn type_name(&self) -> String {
        let word = |word: &str| word[..1].to_owned() + &word[1..].to_lowercase();
        self.name.split('_').map(word).collect()
    }

    /// Whether there may be several lines: what tells them apart is in the kernels' names.
    fn is_list(&self) -> bool {
        let named = |column: &&str| self.kernel.contains(&format!("{{{column}}}"));
        self.columns.iter().any(named)
    }

    /// The columns that are fields of their own.
    fn fields(&self) -> impl Iterator<Item = (usize, &'a str)> {
        let columns = self.columns.iter().copied().enumerate();
        columns.filter(|(_, column)| *column != "threads")
    }

    /// The choices that its kernels have.
    fn choices(
        &self,
    ) -> impl Iterator<Item = &'static (&'static str, &'static str, &'static [&'static str])> {
        CHOICES
            .iter()
            .filter(|(part, ..)| self.kernel.contains(part))
    }

    /// The type of the kernels of a line.
    fn kernel_type(&self) -> String {
        let (mut before, mut after) = (String::new(), String::new());
        for (_, per, _) in self.choices() {
            before += &format!("{per}<");
            after += ">";
        }
        format!("{before}Kernel{after}")
    }

    /// The name of the kernels of a line, with what stands for several.
    fn name(&self, line: &[&str]) -> String {
        let mut name = self.kernel.to_owned();
        for (column, value) in self.columns.iter().zip(line) {
            name = name.replace(&format!("{{{column}}}"), value);
        }
        name
    }

    /// The names of the kernels of a line.
    fn names(&self, line: &[&str]) -> Vec<String> {
        let mut names = vec![self.name(line)];
        for (part, _, choices) in self.choices() {
            let all = |name: String| choices.iter().map(move |choice| name.replace(part, choice));
            names = names.into_iter().flat_map(all).collect();
        }
        names
    }

    /// The line as a value of its type.
    fn value(&self, folder: &str, line: &[&str]) -> String {
        let threads = self.columns.iter().position(|column| *column == "threads");
        let threads = threads.map_or("0", |at| line[at]);
        let (file, name) = (format!("{folder}/{}", self.file), self.name(line));
        let mut kernels =
            format!("Kernel {{ file: {file:?}, name: {name:?}, threads: {threads} }}");
        // From the innermost: each choice repeats what is there.
        for (part, per, choices) in self.choices().collect::<Vec<_>>().into_iter().rev() {
            let one = |choice: &&str| format!("{choice}: {}", kernels.replace(part, choice));
            let all: Vec<String> = choices.iter().map(one).collect();
            kernels = format!("{per} {{ {} }}", all.join(", "));
        }
        let fields = self
            .fields()
            .map(|(at, column)| format!(", {column}: {}", line[at]));
        format!(
            "{} {{ kernel: {kernels}{} }}",
            self.type_name(),
            fields.collect::<String>()
        )
    }
}

/// Makes types of the macros of the tables, and values of their lines.
pub(crate) fn make() -> Result<(), String> {
    let (mut types, mut values, mut names) = (String::new(), String::new(), String::new());
    for (at, (folder, variant, _)) in ARCHITECTURES.iter().enumerate() {
        let path = Path::new("kernels").join(folder).join("kernels.def");
        let text = read(&path)?;
        let families = Family::all(&text).map_err(|why| format!("{}: {why}", path.display()))?;
        // The oldest has all that there is to do; the others some of it.
        let table = match at {
            0 => "Table".to_owned(),
            _ => format!("{variant}Table"),
        };
        let _ = writeln!(
            types,
            "/// The kernels of `{folder}`.\npub(crate) struct {table} {{"
        );
        for family in &families {
            let (field, of) = (family.name.to_lowercase(), family.type_name());
            let of = if family.is_list() {
                format!("&'static [{of}]")
            } else {
                of
            };
            let _ = writeln!(types, "    pub(crate) {field}: {of},");
        }
        types.push_str("}\n");
        for family in &families {
            let kernel = family.kernel_type();
            let _ = writeln!(
                types,
                "/// A line of `{}`.\npub(crate) struct {} {{\n    pub(crate) kernel: {kernel},",
                family.name,
                family.type_name()
            );
            for (_, column) in family.fields() {
                let _ = writeln!(types, "    pub(crate) {column}: usize,");
            }
            types.push_str("}\n");
        }
        let _ = writeln!(
            values,
            "pub(crate) static {}: {table} = {table} {{",
            folder.to_uppercase()
        );
        for family in &families {
            let lines: Vec<String> = (family.lines.iter())
                .map(|line| family.value(folder, line))
                .collect();
            let value = match (family.is_list(), &lines[..]) {
                (true, lines) => format!("&[{}]", lines.join(", ")),
                (false, [line]) => line.clone(),
                _ => return Err(format!("{}: {} has one line", path.display(), family.name)),
            };
            let _ = writeln!(values, "    {}: {value},", family.name.to_lowercase());
            for name in family.lines.iter().flat_map(|line| family.names(line)) {
                let file = family.file;
                let _ = writeln!(
                    names,
                    "    (Architecture::{variant}, \"{folder}/{file}\", {name:?}),"
                );
            }
        }
        values.push_str("};\n");
    }
    let module = format!(
        "{types}{values}/// Every kernel of the tables: its architecture, its file, and its name.\n\
         pub const NAMES: &[(Architecture, &str, &str)] = &[\n{names}];\n"
    );
    write(&out_dir().join("tables.rs"), &module)
}
