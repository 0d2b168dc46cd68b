//! Text to tokens and back: `tokenizer.json` where the checkpoint has one, else one token a byte.

use std::path::Path;

use anyhow::{Context, Result, anyhow, ensure};

use crate::checkpoint::{Document, Keys, refuse_pointer, require_folder};

/// What a model reads and writes, from text and to it.
pub enum Tokenizer {
    /// One token a byte.
    Bytes,
    /// As `tokenizer.json` says.
    Vocabulary(Box<tokenizers::Tokenizer>),
}

/// Files of tokenizers in other formats, from which transformers can make `tokenizer.json`.
const OTHERS: &[&str] = &["tokenizer.model", "vocab.json", "merges.txt", "vocab.txt"];

/// More tokens than 256 bytes and some special ones are no bytes.
const MOST_BYTE_TOKENS: usize = 512;

impl Tokenizer {
    /// The tokenizer of a checkpoint folder.
    ///
    /// # Errors
    /// When `tokenizer.json` cannot be read; or when there is none, and the checkpoint does not look as if its tokens were
    /// bytes.
    pub fn load(folder: &Path) -> Result<Self> {
        Self::read(folder).with_context(|| folder.display().to_string())
    }

    fn read(folder: &Path) -> Result<Self> {
        require_folder(folder)?;
        let file = folder.join("tokenizer.json");
        if file.exists() {
            refuse_pointer(&file)?;
            let read = |error| anyhow!("tokenizer.json: {error}");
            let mut tokenizer = tokenizers::Tokenizer::from_file(&file).map_err(read)?;
            // Settings of some batch that it was made for; they would cut a prompt or fill it up.
            tokenizer.with_truncation(None).map_err(read)?;
            tokenizer.with_padding(None);
            return Ok(Self::Vocabulary(Box::new(tokenizer)));
        }
        let other = OTHERS.iter().find(|name| folder.join(name).exists());
        ensure!(
            other.is_none(),
            "found {}, expected tokenizer.json: write it, in Python: `AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)`",
            other.unwrap_or(&"")
        );
        if let Some(config) = Document::read_if_there(folder, "config.json")? {
            let vocab = Keys::new(config.name, &config.keys).size(&["vocab_size"], 256)?;
            ensure!(
                vocab <= MOST_BYTE_TOKENS,
                "found no tokenizer.json, and {vocab} tokens are no bytes"
            );
        }
        Ok(Self::Bytes)
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

    /// The text of tokens, without special ones. What is no whole character becomes U+FFFD.
    pub fn decode(&self, tokens: &[u32]) -> Result<String> {
        match self {
            Self::Bytes => {
                let bytes = tokens.iter().filter_map(|&token| u8::try_from(token).ok());
                let bytes: Vec<u8> = bytes.collect();
                Ok(String::from_utf8_lossy(&bytes).into_owned())
            }
            Self::Vocabulary(tokenizer) => tokenizer
                .decode(tokens, true)
                .map_err(|error| anyhow!("{error}")),
        }
    }

    /// The number of bytes of text that tokens stand for.
    pub fn text_len(&self, tokens: &[u32]) -> Result<usize> {
        match self {
            Self::Bytes => Ok(tokens.len()),
            Self::Vocabulary(_) => Ok(self.decode(tokens)?.len()),
        }
    }

    /// Turns tokens that follow a prompt into text as they come.
    pub fn stream(&self, prompt: &[u32]) -> TextStream<'_> {
        let context = &prompt[prompt.len().saturating_sub(CONTEXT)..];
        TextStream {
            tokenizer: self,
            tokens: context.to_vec(),
            written: context.len(),
        }
    }
}

/// How many tokens of a prompt are decoded with those that follow: more than special ones, which have no text, come in a row.
const CONTEXT: usize = 64;

/// The text that follows a prompt, token by token. Decoders write a token after others differently than at the start of a
/// text, so that tokens are decoded after some whose text has been written; what that adds is what is new.
pub struct TextStream<'a> {
    tokenizer: &'a Tokenizer,
    /// Tokens whose text has been written, and those after them whose text has not.
    tokens: Vec<u32>,
    /// How many are of the first kind.
    written: usize,
}

impl TextStream<'_> {
    /// The characters that the next token makes whole.
    pub fn push(&mut self, token: u32) -> Result<String> {
        self.tokens.push(token);
        let text = self.unwritten()?;
        // The token may end within a character, whose other bytes are in the next.
        if text.is_empty() || text.ends_with(char::REPLACEMENT_CHARACTER) {
            return Ok(String::new());
        }
        self.tokens.drain(..self.written);
        self.written = self.tokens.len();
        Ok(text)
    }

    /// What is left at the end: the text of bytes that have not become a character.
    pub fn finish(self) -> Result<String> {
        self.unwritten()
    }

    fn unwritten(&self) -> Result<String> {
        let before = self.tokenizer.decode(&self.tokens[..self.written])?;
        let mut text = self.tokenizer.decode(&self.tokens)?;
        let same = before.chars().zip(text.chars());
        let same: usize = same
            .take_while(|(a, b)| a == b)
            .map(|(a, _)| a.len_utf8())
            .sum();
        Ok(text.split_off(same))
    }
}
