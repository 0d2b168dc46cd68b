//! The keys of `config.json`: each is read, or known to change nothing, or has the one value that the model here computes with.

use std::cell::RefCell;
use std::collections::BTreeSet;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Map, Value};

/// An object of a configuration, and which of its keys somebody knew.
pub struct Keys<'a> {
    file: &'static str,
    /// What comes before a key's name in errors: `attn_config.`, or nothing.
    place: &'static str,
    keys: &'a Map<String, Value>,
    known: RefCell<BTreeSet<String>>,
}

/// A key and the values, separated by `|` and each as JSON, that mean what is computed. An absent key and null do too.
pub type Fixed = (&'static str, &'static str);

/// Larger ones are a mistake, and their products would not fit.
const MOST: usize = 1 << 24;

/// What every configuration of transformers may hold without a bearing on what is computed here.
const GENERIC_INERT: &[&str] = &[
    "architectures",
    "attn_implementation",
    "auto_map",
    "base_model_tp_plan",
    "bos_token_id",
    "chunk_size_feed_forward",
    "custom_pipelines",
    "decoder_start_token_id",
    "dtype",
    "eos_token_id",
    "finetuning_task",
    "gradient_checkpointing",
    "id2label",
    "initializer_range",
    "label2id",
    "language",
    "license",
    "max_length",
    "max_new_tokens",
    "max_position_embeddings",
    "max_sequence_length",
    "model_max_length",
    "model_type",
    "n_ctx",
    "n_positions",
    "num_labels",
    "num_return_sequences",
    "output_attentions",
    "output_hidden_states",
    "output_scores",
    "pad_token_id",
    "prefix",
    "problem_type",
    "return_dict",
    "return_dict_in_generate",
    "sep_token_id",
    "seq_length",
    "task_specific_params",
    "tf_legacy_loss",
    "tokenizer_class",
    "torch_dtype",
    "torchscript",
    "transformers_version",
    "unk_token_id",
    "unsloth_version",
    "use_bfloat16",
    "use_cache",
    // How tokens are drawn is the caller's choice.
    "do_sample",
    "early_stopping",
    "length_penalty",
    "temperature",
    "top_k",
    "top_p",
    "typical_p",
];

/// What every configuration of transformers may hold and no model here computes.
const GENERIC_FIXED: &[Fixed] = &[
    ("add_cross_attention", "false"),
    ("cross_attention_hidden_size", "null"),
    ("is_decoder", "false|true"),
    ("is_encoder_decoder", "false"),
    ("pruned_heads", "{}|[]"),
    ("quantization_config", "null"),
    ("compression_config", "null"),
    ("sliding_window", "null"),
    ("tie_encoder_decoder", "false"),
];

impl<'a> Keys<'a> {
    /// Of a whole file.
    pub fn new(file: &'static str, keys: &'a Map<String, Value>) -> Self {
        Self {
            file,
            place: "",
            keys,
            known: RefCell::default(),
        }
    }

    /// An object within the file; none where the key is absent or null.
    pub fn within(&self, name: &str, place: &'static str) -> Result<Option<Keys<'a>>> {
        match self.get(name) {
            Value::Null => Ok(None),
            Value::Object(keys) => Ok(Some(Keys {
                place,
                ..Keys::new(self.file, keys)
            })),
            other => bail!(self.wrong(name, other, "an object")),
        }
    }

    /// Null where there is none.
    pub fn get(&self, name: &str) -> &'a Value {
        self.known.borrow_mut().insert(name.to_owned());
        self.keys.get(name).unwrap_or(&Value::Null)
    }

    /// Whether the key is there, be it null.
    pub fn has(&self, name: &str) -> bool {
        self.keys.contains_key(name)
    }

    fn wrong(&self, name: &str, found: &Value, expected: &str) -> String {
        format!(
            "{}: found {}{name} = {found}, expected {expected}",
            self.file, self.place
        )
    }

    /// A positive integer under any of its names.
    pub fn size(&self, names: &[&str], default: usize) -> Result<usize> {
        let mut found: Option<(&str, usize)> = None;
        for name in names {
            let value = self.get(name);
            if value.is_null() {
                continue;
            }
            let size = value.as_u64().map(|n| n.try_into().unwrap_or(usize::MAX));
            let size = size
                .filter(|size| (1..=MOST).contains(size))
                .with_context(|| {
                    self.wrong(name, value, &format!("an integer from 1 to {MOST}"))
                })?;
            match found {
                Some((first, other)) if other != size => bail!(self.wrong(
                    name,
                    value,
                    &format!("the {other} of {first}, which means the same")
                )),
                _ => found = Some((name, size)),
            }
        }
        Ok(found.map_or(default, |(_, size)| size))
    }

    /// `hidden_size`, over which its old name `n_embed` goes.
    pub fn hidden(&self, default: usize) -> Result<usize> {
        let size = self.size(&["hidden_size"], default)?;
        self.size(&["n_embed"], size)
    }

    /// A truth value; null is Python's `None`, which is not true.
    pub fn flag(&self, name: &str, default: bool) -> Result<bool> {
        match self.get(name) {
            Value::Bool(flag) => Ok(*flag),
            Value::Null => Ok(default && !self.has(name)),
            other => bail!(self.wrong(name, other, "true or false")),
        }
    }

    /// A number, if it is set.
    pub fn number(&self, name: &str) -> Result<Option<f64>> {
        let value = self.get(name);
        if value.is_null() {
            return Ok(None);
        }
        let number = value.as_f64().filter(|number| number.is_finite());
        let number = number.with_context(|| self.wrong(name, value, "a number"))?;
        Ok(Some(number))
    }

    /// A number above 0, which a division by a root needs.
    pub fn positive(&self, name: &str, default: f64) -> Result<f64> {
        let number = self.number(name)?.unwrap_or(default);
        ensure!(
            number > 0.0,
            self.wrong(name, self.get(name), "a number above 0")
        );
        Ok(number)
    }

    /// A text, if it is set.
    pub fn text(&self, name: &str) -> Result<Option<&'a str>> {
        match self.get(name) {
            Value::Null => Ok(None),
            Value::String(text) => Ok(Some(text)),
            other => bail!(self.wrong(name, other, "a string")),
        }
    }

    /// That a key is absent, null or has one of some values.
    pub fn fixed(&self, keys: &[Fixed]) -> Result<()> {
        for (name, values) in keys {
            let found = self.get(name);
            let expected = match *values {
                "null" => "null".to_owned(),
                values => format!("{} or null", values.replace('|', ", ")),
            };
            let fits = |value: &str| {
                let value: Value = serde_json::from_str(value).unwrap_or(Value::Null);
                *found == value || found.is_number() && found.as_f64() == value.as_f64()
            };
            ensure!(
                found.is_null() || values.split('|').any(fits),
                self.wrong(name, found, &expected)
            );
        }
        Ok(())
    }

    /// A value that the rest of the configuration decides.
    pub fn equal(&self, name: &str, expected: usize) -> Result<()> {
        let found = self.get(name);
        ensure!(
            found.is_null() || found.as_u64() == Some(expected as u64),
            self.wrong(name, found, &expected.to_string())
        );
        Ok(())
    }

    /// Refuses what nobody read: it could change what the model computes. `inert` are the keys that do not.
    pub fn finish(self, inert: &[&str]) -> Result<()> {
        self.fixed(GENERIC_FIXED)?;
        super::generation::refuse_other_choices(&self)?;
        let known = self.known.borrow();
        for (name, value) in self.keys {
            // transformers keeps what is its own under such names.
            let private = name.starts_with('_');
            let listed = |list: &[&str]| list.contains(&name.as_str());
            ensure!(
                value.is_null()
                    || private
                    || known.contains(name)
                    || listed(GENERIC_INERT)
                    || listed(inert),
                "{}; a key that changes nothing can be deleted from the file",
                self.wrong(
                    name,
                    value,
                    "no such key: what it changes is not known here"
                )
            );
        }
        Ok(())
    }
}

/// The features of a head.
pub fn head_dim(hidden: usize, heads: usize) -> Result<usize> {
    ensure!(
        hidden.is_multiple_of(heads),
        "config.json: found a hidden size of {hidden} and {heads} heads, expected a multiple of the heads"
    );
    Ok(hidden / heads)
}
