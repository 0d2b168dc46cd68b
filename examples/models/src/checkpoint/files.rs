//! What lies in the folder: JSON documents, safetensors, and files that only stand for them.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Map, Value};

/// A JSON object and the file that holds it.
pub struct Document {
    /// What errors call it.
    pub name: &'static str,
    /// Its keys.
    pub keys: Map<String, Value>,
}

impl Document {
    /// Reads a file that the folder must have.
    pub fn read(folder: &Path, name: &'static str) -> Result<Self> {
        let found = Self::read_if_there(folder, name)?;
        found.with_context(|| format!("found no {name}"))
    }

    /// Reads a file, if the folder has it.
    pub fn read_if_there(folder: &Path, name: &'static str) -> Result<Option<Self>> {
        let path = folder.join(name);
        if !path.exists() {
            return Ok(None);
        }
        refuse_pointer(&path)?;
        let text = fs::read_to_string(&path).context(name)?;
        let value: Value = serde_json::from_str(&text).context(name)?;
        match value {
            Value::Object(keys) => Ok(Some(Self { name, keys })),
            _ => bail!("{name}: found JSON that is no object, expected an object"),
        }
    }
}

/// The folder itself.
pub fn require_folder(folder: &Path) -> Result<()> {
    ensure!(folder.exists(), "there is no such folder");
    ensure!(
        folder.is_dir(),
        "found a file, expected the folder of a checkpoint"
    );
    Ok(())
}

/// What errors call a file of the folder.
pub fn file_name(path: &Path) -> String {
    let name = path.file_name().unwrap_or(path.as_os_str());
    name.to_string_lossy().into_owned()
}

/// Git LFS leaves a small text where a large file belongs when it was not asked to fetch it.
pub fn refuse_pointer(path: &Path) -> Result<()> {
    let mut start = Vec::new();
    let file = File::open(path).with_context(|| file_name(path))?;
    file.take(64)
        .read_to_end(&mut start)
        .with_context(|| file_name(path))?;
    ensure!(
        !start.starts_with(b"version https://git-lfs"),
        "{}: found a Git LFS pointer, expected the file that it stands for: run `git lfs pull` in the checkpoint's folder, or download the file itself",
        file_name(path)
    );
    Ok(())
}

/// The safetensors files of the folder: one, or the shards of an index with the tensors that it says each has.
pub struct Shards {
    /// In the order of their names.
    pub files: Vec<PathBuf>,
    /// Tensor and file name.
    pub index: Vec<(String, String)>,
}

const WHOLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// Finds them; a folder that has both is read as transformers reads it, from the one file.
pub fn shards(folder: &Path) -> Result<Shards> {
    if folder.join(WHOLE).exists() {
        return Ok(Shards {
            files: vec![folder.join(WHOLE)],
            index: Vec::new(),
        });
    }
    let Some(index) = Document::read_if_there(folder, INDEX)? else {
        return Err(no_safetensors(folder));
    };
    let map = index.keys.get("weight_map").and_then(Value::as_object);
    let map = map.with_context(|| format!("{INDEX}: found no weight_map"))?;
    let mut pairs = Vec::new();
    for (tensor, file) in map {
        let file = file.as_str().with_context(|| {
            format!("{INDEX}: found {file} for {tensor}, expected the name of a file")
        })?;
        // A path could lead out of the folder.
        ensure!(
            Path::new(file).file_name() == Some(file.as_ref()),
            "{INDEX}: found {file:?} for {tensor}, expected the name of a file of the folder"
        );
        pairs.push((tensor.clone(), file.to_owned()));
    }
    ensure!(!pairs.is_empty(), "{INDEX}: found an empty weight_map");
    let mut names: Vec<&String> = pairs.iter().map(|(_, file)| file).collect();
    names.sort();
    names.dedup();
    let missing: Vec<&str> = names
        .iter()
        .filter(|name| !folder.join(name).exists())
        .map(|name| name.as_str())
        .collect();
    ensure!(
        missing.is_empty(),
        "found no {}, of the {} shards that {INDEX} lists: download what is missing",
        missing.join(", "),
        names.len()
    );
    Ok(Shards {
        files: names.iter().map(|name| folder.join(name)).collect(),
        index: pairs,
    })
}

/// Says what there is instead.
fn no_safetensors(folder: &Path) -> anyhow::Error {
    let mut names: Vec<String> = fs::read_dir(folder)
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .collect();
    names.sort();
    let of = |suffixes: &[&str]| -> Option<String> {
        let found: Vec<&str> = names
            .iter()
            .filter(|name| suffixes.iter().any(|suffix| name.ends_with(suffix)))
            .map(String::as_str)
            .collect();
        (!found.is_empty()).then(|| found.join(", "))
    };
    if let Some(found) = of(&[".safetensors"]) {
        return anyhow::anyhow!(
            "found {found}, expected {WHOLE}, or shards with their {INDEX}: the file that names the shards is missing, or the weights have another name"
        );
    }
    if let Some(found) = of(&[".bin", ".pt", ".pth", ".h5", ".msgpack", ".gguf", ".ckpt"]) {
        return anyhow::anyhow!(
            "found {found}, expected {WHOLE}: other formats of weights are not read; write them as safetensors, in Python: `AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(DIR)`"
        );
    }
    anyhow::anyhow!("found no weights, expected {WHOLE}, or shards with their {INDEX}")
}
