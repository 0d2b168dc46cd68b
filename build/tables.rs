//! The tables of kernels: `kernels.def` of each architecture, as Rust.

use std::fmt::Write as _;
use std::path::Path;

use super::{ARCHITECTURES, out_dir, read, write};

/// The names of the element types: those of `FOR_EACH_ELEMENT` in `kernels/common/elements.cuh`, and the fields of
/// `PerElement` in `src/kernels`.
const ELEMENTS: &[&str] = &["f16", "bf16"];

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

    /// Whether there is one kernel for each type of elements.
    fn has_elements(&self) -> bool {
        self.kernel.contains("{element}")
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

    /// The names of the kernels of a line, by type of elements.
    fn names(&self, line: &[&str]) -> Vec<(&'static str, String)> {
        let mut name = self.kernel.to_owned();
        for (column, value) in self.columns.iter().zip(line) {
            name = name.replace(&format!("{{{column}}}"), value);
        }
        let of = |element: &&'static str| (*element, name.replace("{element}", element));
        match self.has_elements() {
            true => ELEMENTS.iter().map(of).collect(),
            false => vec![("", name)],
        }
    }

    /// The line as a value of its type.
    fn value(&self, folder: &str, line: &[&str]) -> String {
        let threads = self.columns.iter().position(|column| *column == "threads");
        let threads = threads.map_or("0", |at| line[at]);
        let kernels: Vec<String> = (self.names(line).iter())
            .map(|(element, name)| {
                let file = format!("{folder}/{}", self.file);
                let kernel =
                    format!("Kernel {{ file: {file:?}, name: {name:?}, threads: {threads} }}");
                match *element {
                    "" => kernel,
                    element => format!("{element}: {kernel}"),
                }
            })
            .collect();
        let kernels = match self.has_elements() {
            true => format!("PerElement {{ {} }}", kernels.join(", ")),
            false => kernels.concat(),
        };
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
    for (at, (folder, variant)) in ARCHITECTURES.iter().enumerate() {
        let path = Path::new("kernels").join(folder).join("kernels.def");
        let text = read(&path)?;
        let families = Family::all(&text).map_err(|why| format!("{}: {why}", path.display()))?;
        if at == 0 {
            types.push_str("/// The kernels of an architecture.\npub(crate) struct Table {\n");
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
                let kernel = match family.has_elements() {
                    true => "PerElement<Kernel>",
                    false => "Kernel",
                };
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
        }
        let _ = writeln!(
            values,
            "pub(crate) static {}: Table = Table {{",
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
            for (_, name) in family.lines.iter().flat_map(|line| family.names(line)) {
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
