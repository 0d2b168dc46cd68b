//! Tokens, each with its line.

use crate::error::ParseError;

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Tok {
    Ident(String),
    /// `.word`, without the dot; `::` belongs to the word.
    Dot(String),
    Int(i128),
    F32(u32),
    F64(u64),
    Str(String),
    Punct(char),
}

#[derive(Debug, Clone)]
pub(super) struct Token {
    pub tok: Tok,
    pub line: u32,
    /// Byte range in the text.
    pub start: usize,
    pub end: usize,
}

fn is_ident_start(c: u8) -> bool {
    c.is_ascii_alphabetic() || matches!(c, b'_' | b'$' | b'%')
}

fn is_ident(c: u8) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, b'_' | b'$')
}

pub(super) fn lex(text: &str) -> Result<Vec<Token>, ParseError> {
    let b = text.as_bytes();
    let at = |i: usize| b.get(i).copied().unwrap_or(0);
    let mut out = Vec::with_capacity(text.len() / 4);
    let mut i = 0;
    let mut line = 1;
    while i < b.len() {
        let c = b[i];
        let start = i;
        let tok = match c {
            b'\n' => {
                line += 1;
                i += 1;
                continue;
            }
            _ if c.is_ascii_whitespace() || c == 0 => {
                i += 1;
                continue;
            }
            b'/' if at(i + 1) == b'/' => {
                while i < b.len() && b[i] != b'\n' {
                    i += 1;
                }
                continue;
            }
            b'/' if at(i + 1) == b'*' => {
                let first = line;
                i += 2;
                while !(at(i) == b'*' && at(i + 1) == b'/') {
                    if i >= b.len() {
                        return Err(ParseError::new(first, "a comment that does not end"));
                    }
                    line += u32::from(b[i] == b'\n');
                    i += 1;
                }
                i += 2;
                continue;
            }
            b'"' => {
                i += 1;
                while i < b.len() && b[i] != b'"' && b[i] != b'\n' {
                    i += 1 + usize::from(b[i] == b'\\');
                }
                if at(i) != b'"' {
                    return Err(ParseError::new(line, "a string that does not end"));
                }
                i += 1;
                Tok::Str(String::from_utf8_lossy(&b[start + 1..i - 1]).into_owned())
            }
            b'.' if is_ident(at(i + 1)) => {
                i += 1;
                while is_ident(at(i)) || (at(i) == b':' && at(i + 1) == b':') {
                    i += if at(i) == b':' { 2 } else { 1 };
                }
                Tok::Dot(word(b, start + 1, i))
            }
            _ if c.is_ascii_digit() => {
                while at(i).is_ascii_alphanumeric()
                    || (at(i) == b'.' && at(i + 1).is_ascii_digit())
                    || exponent(b, start, i)
                {
                    i += 1;
                }
                number(&word(b, start, i)).ok_or_else(|| {
                    ParseError::new(line, format!("`{}` is not a number", word(b, start, i)))
                })?
            }
            _ if is_ident_start(c) => {
                i += 1;
                while is_ident(at(i)) {
                    i += 1;
                }
                Tok::Ident(word(b, start, i))
            }
            _ if c.is_ascii_punctuation() => {
                i += 1;
                Tok::Punct(char::from(c))
            }
            _ => return Err(ParseError::new(line, format!("unexpected byte {c:#04x}"))),
        };
        out.push(Token {
            tok,
            line,
            start,
            end: i,
        });
    }
    Ok(out)
}

/// The sign inside `1.5e-3`.
fn exponent(b: &[u8], start: usize, i: usize) -> bool {
    i > start
        && matches!(b.get(i), Some(b'+' | b'-'))
        && matches!(b[i - 1], b'e' | b'E')
        && b[start..i].contains(&b'.')
}

fn word(b: &[u8], from: usize, to: usize) -> String {
    String::from_utf8_lossy(&b[from..to]).into_owned()
}

fn number(s: &str) -> Option<Tok> {
    if let Some(hex) = s.strip_prefix("0f").or(s.strip_prefix("0F")) {
        return (hex.len() == 8)
            .then(|| u32::from_str_radix(hex, 16).ok().map(Tok::F32))
            .flatten();
    }
    if let Some(hex) = s.strip_prefix("0d").or(s.strip_prefix("0D")) {
        return (hex.len() == 16)
            .then(|| u64::from_str_radix(hex, 16).ok().map(Tok::F64))
            .flatten();
    }
    let int = s.strip_suffix('U').unwrap_or(s);
    let parsed = if let Some(hex) = int.strip_prefix("0x").or(int.strip_prefix("0X")) {
        i128::from(u64::from_str_radix(hex, 16).ok()?)
    } else if let Some(bin) = int.strip_prefix("0b").or(int.strip_prefix("0B")) {
        i128::from(u64::from_str_radix(bin, 2).ok()?)
    } else if s.contains('.') {
        return s.parse::<f64>().ok().map(|v| Tok::F64(v.to_bits()));
    } else if int.len() > 1 && int.starts_with('0') {
        i128::from(u64::from_str_radix(int, 8).ok()?)
    } else {
        i128::from(int.parse::<u64>().ok()?)
    };
    Some(Tok::Int(parsed))
}
