//! What a checkpoint says of generating text: where it ends, and what else would change the likeliest token.

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::files::Document;
use super::keys::{Fixed, Keys};

/// Settings that change which token is chosen and that nothing here applies, with the values that change nothing.
const CHOICES: &[Fixed] = &[
    ("bad_words_ids", "[]"),
    ("begin_suppress_tokens", "[]"),
    ("diversity_penalty", "0"),
    ("dola_layers", "null"),
    ("encoder_no_repeat_ngram_size", "0"),
    ("encoder_repetition_penalty", "1"),
    ("exponential_decay_length_penalty", "null"),
    ("forced_bos_token_id", "null"),
    ("forced_eos_token_id", "null"),
    ("guidance_scale", "1"),
    ("min_length", "0"),
    ("min_new_tokens", "0"),
    ("no_repeat_ngram_size", "0"),
    ("num_beam_groups", "1"),
    ("num_beams", "1"),
    ("penalty_alpha", "0"),
    ("remove_invalid_values", "false"),
    ("repetition_penalty", "1"),
    ("sequence_bias", "{}|[]"),
    ("stop_strings", "[]"),
    ("suppress_tokens", "[]"),
    ("token_healing", "false"),
    ("watermarking_config", "null"),
];

/// Refuses a value that changes something.
pub fn refuse_other_choices(keys: &Keys<'_>) -> Result<()> {
    keys.fixed(CHOICES)
}

/// The tokens that end a text, as transformers finds them: those of `generation_config.json` where there is one, and what
/// `config.json` says only where there is none.
pub fn end_tokens(config: &Document, generation: Option<&Document>) -> Result<Vec<u32>> {
    if let Some(generation) = generation {
        refuse_other_choices(&Keys::new(generation.name, &generation.keys))?;
    }
    let document = generation.unwrap_or(config);
    let expected = || {
        let found = &document.keys["eos_token_id"];
        format!(
            "{}: found eos_token_id = {found}, expected a token, a list of tokens or null",
            document.name
        )
    };
    let token = |value: &Value| -> Result<u32> {
        let id = value.as_u64().and_then(|id| id.try_into().ok());
        id.with_context(expected)
    };
    match document.keys.get("eos_token_id") {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::Array(tokens)) => tokens.iter().map(token).collect(),
        Some(value @ Value::Number(_)) => Ok(vec![token(value)?]),
        Some(_) => bail!(expected()),
    }
}
