//! The tensors of a checkpoint: each is read, or known to hold nothing of the model, or the checkpoint is refused.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use candle_core::safetensors::{Load, MmapedSafetensors};
use candle_core::{DType, Device, Tensor};

use super::files::{file_name, refuse_pointer, shards};

/// All tensors of a folder, and which of them somebody asked for.
pub struct Tensors {
    files: Vec<(PathBuf, MmapedSafetensors)>,
    /// Which file has a tensor.
    places: BTreeMap<String, usize>,
    device: Device,
    read: RefCell<BTreeSet<String>>,
}

/// How many names an error lists.
const LISTED: usize = 8;

impl Tensors {
    /// Maps `model.safetensors`, or the shards that its index lists.
    pub fn open(folder: &Path, device: &Device) -> Result<Self> {
        let shards = shards(folder)?;
        let (mut files, mut places) = (Vec::new(), BTreeMap::new());
        for path in shards.files {
            refuse_pointer(&path)?;
            // SAFETY: the file is mapped for reading; a checkpoint does not change while it is in use.
            let file = unsafe { MmapedSafetensors::new(&path) };
            let file = file.with_context(|| {
                let len = std::fs::metadata(&path).map_or(0, |found| found.len());
                format!(
                    "{}: found {len} bytes that are no whole safetensors file: cut short, or of another format; download it again",
                    file_name(&path)
                )
            })?;
            for (name, _) in file.tensors() {
                let other = places.insert(name.clone(), files.len());
                ensure!(
                    other.is_none(),
                    "{}: found {name}, which another shard has too",
                    file_name(&path)
                );
            }
            files.push((path, file));
        }
        for (name, file) in &shards.index {
            let place = places.get(name).map(|&at: &usize| &files[at].0);
            ensure!(
                place.is_some_and(|path| *path == folder.join(file)),
                "{file}: found no {name}, which model.safetensors.index.json says is there"
            );
        }
        Ok(Self {
            files,
            places,
            device: device.clone(),
            read: RefCell::default(),
        })
    }

    /// Whether there is a tensor of this whole name.
    pub fn has(&self, name: &str) -> bool {
        self.places.contains_key(name)
    }

    /// All names.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.places.keys().map(String::as_str)
    }

    /// The only name that is `name`, or ends with it after a dot.
    pub fn only(&self, name: &str) -> Result<Option<&str>> {
        let ends = |found: &&str| {
            let before = found.strip_suffix(name);
            before.is_some_and(|before| before.is_empty() || before.ends_with('.'))
        };
        let found: Vec<&str> = self.names().filter(ends).collect();
        ensure!(
            found.len() < 2,
            "found {}, expected one tensor that ends with {name}",
            found.join(" and ")
        );
        Ok(found.first().copied())
    }

    /// What comes before the names of a model: `transformer.` where it was saved with a head, nothing where it was saved
    /// without, and whatever else was wrapped around it. A tensor that every checkpoint of the family has tells.
    pub fn prefix(&self, of: &str) -> Result<&str> {
        let name = self.only(of)?.with_context(|| {
            let names: Vec<&str> = self.names().collect();
            format!(
                "found {}, expected a tensor {of}, or one that ends with .{of}",
                list(&names)
            )
        })?;
        Ok(&name[..name.len() - of.len()])
    }

    /// A tensor in f32.
    pub fn get(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        let &place = self
            .places
            .get(name)
            .with_context(|| format!("found no tensor {name}, expected one of {shape:?}"))?;
        let view = self.files[place].1.get(name)?;
        ensure!(
            view.shape() == shape,
            "found {name} of {:?}, expected {shape:?}",
            view.shape()
        );
        let dtype = DType::try_from(view.dtype()).ok();
        ensure!(
            matches!(
                dtype,
                Some(DType::F16 | DType::BF16 | DType::F32 | DType::F64)
            ),
            "found {name} in {:?}, expected F16, BF16, F32 or F64: other types of numbers are not read",
            view.dtype()
        );
        self.read.borrow_mut().insert(name.to_owned());
        Ok(view.load(&self.device)?.to_dtype(DType::F32)?)
    }

    /// Refuses what nobody read: it could change what the model computes. `inert` are the ends of names that do not.
    pub fn finish(&self, inert: &[&str]) -> Result<()> {
        let read = self.read.borrow();
        let unread: Vec<&str> = self
            .names()
            .filter(|name| !read.contains(*name))
            .filter(|name| !inert.iter().any(|end| name.ends_with(end)))
            .collect();
        ensure!(
            unread.is_empty(),
            "found {}, expected no such tensors: config.json says nothing of them",
            list(&unread)
        );
        Ok(())
    }
}

/// The first names, and how many there are.
fn list(names: &[&str]) -> String {
    match names.len() {
        0 => "no tensors".into(),
        n if n <= LISTED => names.join(", "),
        n => format!("{} and {} more", names[..LISTED].join(", "), n - LISTED),
    }
}
