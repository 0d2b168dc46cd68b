//! Checkpoints before they are written: made of one of the tree, or by a test, and changed.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::Path;

use candle_core::{Device, Tensor};
use flash_alibi_models::{Model, Sampler, Tokenizer, generate};
use serde_json::Value;

use crate::{Scratch, folder, greedy_golden, load, logits, max_difference};

/// A checkpoint before it is written.
#[derive(Clone)]
pub struct Variant {
    base: &'static str,
    pub config: Value,
    pub tensors: BTreeMap<String, Tensor>,
    /// Other files: name and content.
    pub files: Vec<(String, Vec<u8>)>,
}

impl Variant {
    /// Of no checkpoint of the tree.
    pub fn new(config: Value, tensors: BTreeMap<String, Tensor>) -> Self {
        Self {
            base: "",
            config,
            tensors,
            files: Vec::new(),
        }
    }

    pub fn of(base: &'static str) -> Self {
        let config = fs::read_to_string(folder(base).join("config.json")).unwrap();
        let file = folder(base).join("model.safetensors");
        let tensors = candle_core::safetensors::load(file, &Device::Cpu).unwrap();
        Self {
            base,
            config: serde_json::from_str(&config).unwrap(),
            tensors: tensors.into_iter().collect(),
            files: Vec::new(),
        }
    }

    /// The same without a head of its own.
    pub fn tied(base: &'static str) -> Self {
        let mut variant = Self::of(base);
        variant.tensors.remove("lm_head.weight");
        variant.config["tie_word_embeddings"] = true.into();
        variant
    }

    /// Sets a key of the configuration, or of an object within it.
    pub fn set(mut self, key: &str, value: impl Into<Value>) -> Self {
        match key.split_once('.') {
            Some((object, key)) => self.config[object][key] = value.into(),
            None => self.config[key] = value.into(),
        }
        self
    }

    pub fn without(mut self, key: &str) -> Self {
        self.config.as_object_mut().unwrap().remove(key);
        self
    }

    pub fn rename(mut self, name: impl Fn(&str) -> String) -> Self {
        let tensors = std::mem::take(&mut self.tensors);
        self.tensors = tensors
            .into_iter()
            .map(|(old, x)| (name(&old), x))
            .collect();
        self
    }

    pub fn with_tensor(mut self, name: &str, tensor: Tensor) -> Self {
        self.tensors.insert(name.to_owned(), tensor);
        self
    }

    pub fn without_tensor(mut self, name: &str) -> Self {
        self.tensors.remove(name).unwrap();
        self
    }

    pub fn map(mut self, change: impl Fn(&str, &Tensor) -> Tensor) -> Self {
        for (name, tensor) in &mut self.tensors {
            *tensor = change(name, tensor);
        }
        self
    }

    pub fn with_file(mut self, name: &str, content: impl Into<Vec<u8>>) -> Self {
        self.files.push((name.to_owned(), content.into()));
        self
    }

    /// Without weights, unless they are among the other files.
    pub fn write_without_tensors(&self) -> Scratch {
        let to = Scratch::new();
        fs::write(to.join("config.json"), self.config.to_string()).unwrap();
        for (name, content) in &self.files {
            fs::write(to.join(name), content).unwrap();
        }
        to
    }

    pub fn write(&self) -> Scratch {
        let to = self.write_without_tensors();
        let tensors: HashMap<String, Tensor> = self.tensors.clone().into_iter().collect();
        candle_core::safetensors::save(&tensors, to.join("model.safetensors")).unwrap();
        to
    }

    /// In shards, with an index that `change` may change.
    pub fn write_shards(&self, shards: usize, change: impl Fn(&mut Value)) -> Scratch {
        let to = self.write_without_tensors();
        let name = |i: usize| format!("model-{:05}-of-{shards:05}.safetensors", i + 1);
        let mut parts = vec![HashMap::new(); shards];
        let mut map = serde_json::Map::new();
        for (i, (tensor, x)) in self.tensors.iter().enumerate() {
            map.insert(tensor.clone(), name(i % shards).into());
            parts[i % shards].insert(tensor.clone(), x.clone());
        }
        for (i, part) in parts.iter().enumerate() {
            candle_core::safetensors::save(part, to.join(name(i))).unwrap();
        }
        let mut index = serde_json::json!({ "weight_map": map });
        change(&mut index);
        let file = to.join("model.safetensors.index.json");
        fs::write(file, index.to_string()).unwrap();
        to
    }

    /// How far its logits are from those of a golden case.
    pub fn difference(&self, case: &str) -> f32 {
        let model = load(&self.write()).unwrap_or_else(|error| panic!("{case}: {error:#}"));
        self.difference_of(&model, case)
    }

    /// The same of a model that was loaded otherwise.
    pub fn difference_of(&self, model: &Model, case: &str) -> f32 {
        let file = folder(self.base).join("golden_logits.safetensors");
        let golden = candle_core::safetensors::load(file, &Device::Cpu).unwrap();
        let (prompt, _) = greedy_golden(self.base);
        let tokens = Tokenizer::Bytes.encode(&prompt).unwrap();
        let found = logits(model, std::slice::from_ref(&tokens), &[tokens.len()]);
        max_difference(&found.squeeze(0).unwrap(), &golden[case])
    }

    /// The tokens that follow the golden prompt greedily, 24 at most, and the text.
    pub fn greedy(&self) -> (Vec<u32>, String) {
        let folder = self.write();
        let (model, tokenizer) = (load(&folder).unwrap(), Tokenizer::load(&folder).unwrap());
        let prompt = tokenizer.encode(&greedy_golden(self.base).0).unwrap();
        let mut written = String::new();
        let mut write = |text: &str| {
            written += text;
            Ok(())
        };
        let greedy = &mut Sampler::greedy();
        let found = generate(&model, &tokenizer, &prompt, 24, greedy, &mut write).unwrap();
        assert_eq!(written, found.text);
        (found.tokens, written)
    }

    /// Why it is not loaded.
    pub fn refused(&self) -> String {
        refused(&self.write())
    }
}

/// Why a folder is not loaded.
pub fn refused(folder: &Path) -> String {
    match load(folder) {
        Ok(_) => panic!("{} was loaded", folder.display()),
        Err(error) => format!("{error:#}"),
    }
}
