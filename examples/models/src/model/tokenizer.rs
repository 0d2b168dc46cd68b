//! Text to tokens and back: `tokenizer.json` where the checkpoint has one, else one token a byte.

use std::path::Path;

use anyhow::{Result, anyhow};

/// What a model reads and writes, from text and to it.
pub enum Tokenizer {
    /// One token a byte.
    Bytes,
    /// As `tokenizer.json` says.
    Vocabulary(Box<tokenizers::Tokenizer>),
}

impl Tokenizer {
    /// The tokenizer of a checkpoint folder.
    pub fn load(folder: &Path) -> Result<Self> {
        let file = folder.join("tokenizer.json");
        if !file.exists() {
            return Ok(Self::Bytes);
        }
        let tokenizer = tokenizers::Tokenizer::from_file(&file);
        let tokenizer = tokenizer.map_err(|error| anyhow!("{}: {error}", file.display()))?;
        Ok(Self::Vocabulary(Box::new(tokenizer)))
    }

    /// The tokens of a text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        match self {
            Self::Bytes => Ok(text.bytes().map(u32::from).collect()),
            Self::Vocabulary(tokenizer) => {
                let encoding = tokenizer.encode(text, true);
                Ok(encoding
                    .map_err(|error| anyhow!("{error}"))?
                    .get_ids()
                    .to_vec())
            }
        }
    }

    /// The number of bytes of text that tokens stand for.
    pub fn text_len(&self, tokens: &[u32]) -> Result<usize> {
        match self {
            Self::Bytes => Ok(tokens.len()),
            Self::Vocabulary(tokenizer) => {
                let text = tokenizer.decode(tokens, true);
                Ok(text.map_err(|error| anyhow!("{error}"))?.len())
            }
        }
    }

    /// Turns tokens into text as they come: each call returns the characters that have become whole.
    pub fn stream(&self) -> Box<dyn FnMut(u32) -> Result<String> + '_> {
        match self {
            Self::Bytes => {
                let mut pending = Vec::new();
                Box::new(move |token| {
                    pending.push(u8::try_from(token).unwrap_or(b'?'));
                    Ok(take_text(&mut pending))
                })
            }
            Self::Vocabulary(tokenizer) => {
                let mut stream = tokenizer.decode_stream(true);
                Box::new(move |token| {
                    let text = stream.step(token).map_err(|error| anyhow!("{error}"))?;
                    Ok(text.unwrap_or_default())
                })
            }
        }
    }
}

/// Takes the whole characters off the front; what can never become one is replaced.
fn take_text(pending: &mut Vec<u8>) -> String {
    let mut text = String::new();
    let mut taken = 0;
    for chunk in pending.utf8_chunks() {
        text.push_str(chunk.valid());
        taken += chunk.valid().len();
        let invalid = chunk.invalid();
        let at_end = taken + invalid.len() == pending.len();
        let unfinished =
            std::str::from_utf8(invalid).is_err_and(|error| error.error_len().is_none());
        if invalid.is_empty() || at_end && unfinished {
            break;
        }
        text.push(char::REPLACEMENT_CHARACTER);
        taken += invalid.len();
    }
    pending.drain(..taken);
    text
}
