//! PTX text to a syntax tree. Knows the grammar, not what instructions mean.

pub(crate) mod ast;
mod lexer;
mod parser;

pub(crate) use parser::parse;
