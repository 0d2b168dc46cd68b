//! Tokens of PTX text.

use crate::parser::ParseError;

#[derive(Clone, Debug, PartialEq)]
pub enum Token<'a> {
    /// Identifiers, directives, opcodes with their modifiers, registers.
    Word(&'a str),
    Int(i64),
    F32(u32),
    F64(u64),
    Str(&'a str),
    Punct(u8),
}

#[derive(Clone, Debug)]
pub struct Spanned<'a> {
    pub token: Token<'a>,
    pub line: u32,
    pub start: usize,
    pub end: usize,
}

pub fn lex(text: &str) -> Result<Vec<Spanned<'_>>, ParseError> {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(text.len() / 4);
    let (mut i, mut line) = (0, 1);
    let is_word = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'$' | b'%' | b'.');
    while i < bytes.len() {
        let start = i;
        let b = bytes[i];
        let token = match b {
            b'\n' => {
                line += 1;
                i += 1;
                continue;
            }
            b' ' | b'\t' | b'\r' | 0 => {
                i += 1;
                continue;
            }
            b'/' if bytes.get(i + 1) == Some(&b'/') => {
                while i < bytes.len() && bytes[i] != b'\n' {
                    i += 1;
                }
                continue;
            }
            b'/' if bytes.get(i + 1) == Some(&b'*') => {
                while i < bytes.len() && !bytes[i..].starts_with(b"*/") {
                    line += u32::from(bytes[i] == b'\n');
                    i += 1;
                }
                i += 2;
                continue;
            }
            b'"' => {
                i += 1;
                while i < bytes.len() && bytes[i] != b'"' {
                    i += if bytes[i] == b'\\' { 2 } else { 1 };
                }
                if i >= bytes.len() {
                    return Err(ParseError::new(line, "unterminated string"));
                }
                i += 1;
                Token::Str(text.get(start + 1..i - 1).unwrap_or(""))
            }
            b'0'..=b'9' => {
                while i < bytes.len()
                    && (is_word(bytes[i]) || exponent_sign(&bytes[start..], i - start))
                {
                    i += 1;
                }
                number(&text[start..i]).ok_or_else(|| {
                    ParseError::new(line, format!("bad number `{}`", &text[start..i]))
                })?
            }
            _ if is_word(b) => {
                while i < bytes.len() {
                    // `.reg.b32` is two directives, `add.s32` one opcode.
                    if i > start && bytes[i] == b'.' && b == b'.' {
                        break;
                    }
                    if is_word(bytes[i]) {
                        i += 1;
                    } else if bytes[i..].starts_with(b"::") {
                        i += 2;
                    } else {
                        break;
                    }
                }
                Token::Word(&text[start..i])
            }
            _ if b.is_ascii() => {
                i += 1;
                Token::Punct(b)
            }
            _ => {
                return Err(ParseError::new(line, "a character outside ASCII"));
            }
        };
        out.push(Spanned {
            token,
            line,
            start,
            end: i,
        });
    }
    Ok(out)
}

/// A sign right after the `e` of a decimal float.
fn exponent_sign(from: &[u8], at: usize) -> bool {
    matches!(from[at], b'+' | b'-')
        && matches!(from[at - 1], b'e' | b'E')
        && from[..at].contains(&b'.')
}

fn number(s: &str) -> Option<Token<'static>> {
    let lower = s.to_ascii_lowercase();
    if let Some(h) = lower.strip_prefix("0f") {
        return u32::from_str_radix(h, 16).ok().map(Token::F32);
    }
    if let Some(h) = lower.strip_prefix("0d") {
        return u64::from_str_radix(h, 16).ok().map(Token::F64);
    }
    if lower.contains('.') || (lower.contains('e') && !lower.starts_with("0x")) {
        return lower.parse::<f64>().ok().map(|v| Token::F64(v.to_bits()));
    }
    let digits = lower.trim_end_matches('u');
    let value = if let Some(h) = digits.strip_prefix("0x") {
        u64::from_str_radix(h, 16).ok()?
    } else if let Some(b) = digits.strip_prefix("0b") {
        u64::from_str_radix(b, 2).ok()?
    } else if digits.len() > 1 && digits.starts_with('0') {
        u64::from_str_radix(digits, 8).ok()?
    } else {
        digits.parse::<u64>().ok()?
    };
    Some(Token::Int(value as i64))
}
