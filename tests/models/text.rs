//! Text from tokens and to them, and where a text ends.

use std::fs;

use flash_alibi_models::Tokenizer;
use serde_json::{Value, json};

use crate::variant::Variant;
use crate::{Scratch, folder};

/// A tokenizer of a `tokenizer.json`.
fn tokenizer(json: &Value) -> Tokenizer {
    let to = Scratch::new();
    fs::write(to.join("tokenizer.json"), json.to_string()).unwrap();
    Tokenizer::load(&to).unwrap()
}

/// The pieces of text that tokens become after a prompt, the last at the end.
fn pieces(tokenizer: &Tokenizer, prompt: &[u32], tokens: &[u32]) -> Vec<String> {
    let mut stream = tokenizer.stream(prompt);
    let pieces = tokens.iter().map(|&token| stream.push(token).unwrap());
    let mut pieces: Vec<String> = pieces.collect();
    pieces.push(stream.finish().unwrap());
    pieces
}

#[test]
fn bytes_become_text_as_soon_as_a_character_is_whole() {
    let tokenizer = Tokenizer::load(&folder("kjv-bloom")).unwrap();
    let tokens = tokenizer.encode("a\u{e9}\u{4e2d}!").unwrap();
    let found = pieces(&tokenizer, &[], &tokens);
    assert_eq!(found, ["a", "", "\u{e9}", "", "", "\u{4e2d}", "!", ""]);
    // A byte that continues nothing, a character that is broken off by another, and one that the end breaks off.
    let found = pieces(&tokenizer, &[0x61], &[0xff, 0x62, 0xe4, 0x63, 0xe4, 0xb8]);
    assert_eq!(
        found,
        ["", "\u{fffd}b", "", "\u{fffd}c", "", "", "\u{fffd}"]
    );
    assert_eq!(tokenizer.text_len(&[0x61, 0xff]).unwrap(), 2);
}

/// Its decoder writes no space before the first token of a text.
fn metaspace() -> Value {
    json!({
        "version": "1.0",
        "added_tokens": [{ "id": 4, "content": "<s>", "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true }],
        "pre_tokenizer": { "type": "Metaspace", "replacement": "\u{2581}", "prepend_scheme": "always", "split": true },
        "decoder": { "type": "Metaspace", "replacement": "\u{2581}", "prepend_scheme": "always", "split": true },
        "model": { "type": "WordLevel", "unk_token": "?",
            "vocab": { "\u{2581}let": 0, "\u{2581}there": 1, "\u{2581}be": 2, "?": 3 } },
    })
}

#[test]
fn text_follows_its_prompt_as_in_one_text() {
    let tokenizer = tokenizer(&metaspace());
    assert_eq!(tokenizer.encode("let there be").unwrap(), [0, 1, 2]);
    assert_eq!(pieces(&tokenizer, &[0], &[1, 2]), [" there", " be", ""]);
    assert_eq!(pieces(&tokenizer, &[], &[1, 2]), ["there", " be", ""]);
    // A special token has no text, and is no start of one.
    assert_eq!(
        pieces(&tokenizer, &[0], &[1, 4, 2]),
        [" there", "", " be", ""]
    );
    assert_eq!(pieces(&tokenizer, &[0, 4], &[4, 1]), ["", " there", ""]);
    assert_eq!(tokenizer.text_len(&[0, 1]).unwrap(), "let there".len());
}

/// GPT-2's alphabet of bytes: the printable ones are themselves, the others follow from 256.
fn byte_level() -> Value {
    let printable = |byte: u32| matches!(byte, 33..=126 | 161..=172 | 174..=255);
    let mut others = 256..;
    let mut letter = |byte| match printable(byte) {
        true => byte,
        false => others.next().unwrap(),
    };
    let vocab: serde_json::Map<String, Value> = (0..256)
        .map(|byte| {
            (
                char::from_u32(letter(byte)).unwrap().to_string(),
                byte.into(),
            )
        })
        .collect();
    let bytes = json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false });
    json!({
        "version": "1.0",
        "pre_tokenizer": bytes,
        "decoder": bytes,
        "model": { "type": "BPE", "vocab": vocab, "merges": [] },
    })
}

#[test]
fn bytes_that_are_left_at_the_end_are_written() {
    let tokenizer = tokenizer(&byte_level());
    let prompt = tokenizer.encode("\u{e9} ").unwrap();
    assert_eq!(prompt, [0xc3, 0xa9, 0x20]);
    let tokens = [0x61, 0xe4, 0xb8, 0xad, 0xff, 0x62, 0xf0, 0x9f];
    let found = pieces(&tokenizer, &prompt, &tokens);
    assert_eq!(
        found,
        ["a", "", "", "\u{4e2d}", "", "\u{fffd}b", "", "", "\u{fffd}"]
    );
    let all = [&prompt[..], &tokens].concat();
    assert_eq!(
        tokenizer.decode(&all).unwrap(),
        format!("\u{e9} {}", found.concat())
    );
}

/// A checkpoint's settings for batches: a prompt is neither cut nor filled up.
#[test]
fn truncation_and_padding_are_not_a_prompts() {
    let mut settings = metaspace();
    settings["truncation"] =
        json!({ "direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0 });
    settings["padding"] = json!({ "strategy": { "Fixed": 8 }, "direction": "Right", "pad_to_multiple_of": null,
        "pad_id": 3, "pad_type_id": 0, "pad_token": "?" });
    let tokenizer = tokenizer(&settings);
    assert_eq!(tokenizer.encode("let there be").unwrap(), [0, 1, 2]);
}

#[test]
fn a_tokenizer_that_is_not_there_is_not_taken_for_bytes() {
    let message = |variant: Variant| {
        let folder = variant.write_without_tensors();
        format!("{:#}", Tokenizer::load(&folder).err().unwrap())
    };
    let bloom = || Variant::of("tiny-bloom");
    let found = message(bloom().with_file("tokenizer.model", "x"));
    assert!(
        found.contains("found tokenizer.model, expected tokenizer.json"),
        "{found}"
    );
    let found = message(bloom().set("vocab_size", 250_880));
    assert!(
        found.contains("found no tokenizer.json, and 250880 tokens are no bytes"),
        "{found}"
    );
    let found = message(bloom().with_file("tokenizer.json", "{}"));
    assert!(found.contains("tokenizer.json: "), "{found}");
}

/// The golden tokens begin with 189, 208.
#[test]
fn tokens_that_end_a_text() {
    let config = |end: Value| Variant::of("tiny-bloom").set("eos_token_id", end);
    let generation = |end: Value| {
        (
            "generation_config.json",
            json!({ "eos_token_id": end }).to_string(),
        )
    };
    let with = |variant: Variant, (name, text): (&str, String)| variant.with_file(name, text);
    let ended = [189, 208];
    for (variant, expected) in [
        (config(json!(208)), Some(ended)),
        (config(json!([254, 208])), Some(ended)),
        (config(json!(null)), None),
        (config(json!([])), None),
        (config(json!(null)).without("eos_token_id"), None),
        (
            with(config(json!(null)), generation(json!([254, 208]))),
            Some(ended),
        ),
        (
            with(config(json!(null)), generation(json!(208))),
            Some(ended),
        ),
        // The file of generation wins, whatever it says.
        (
            with(config(json!(189)), generation(json!([208]))),
            Some(ended),
        ),
        (with(config(json!(189)), generation(json!(null))), None),
        (
            config(json!(189)).with_file("generation_config.json", "{}"),
            None,
        ),
    ] {
        let (tokens, text) = variant.greedy();
        match expected {
            Some(expected) => {
                assert_eq!(tokens, expected);
                // The first token is half a character; the end's own text is not written.
                assert_eq!(text, "\u{fffd}");
            }
            None => assert_eq!(tokens.len(), 24),
        }
    }
}
