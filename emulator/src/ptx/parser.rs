//! Recursive descent over the tokens.

use std::collections::HashSet;
use std::rc::Rc;

use super::ast::{
    AddrBase, Ast, Func, Init, Inst, Operand, RegNames, Stmt, Var, VarSpace, type_size,
};
use super::lexer::{Tok, Token, lex};
use crate::error::ParseError;

type Res<T> = Result<T, ParseError>;

/// Nesting of blocks and vectors beyond this is an error, not a stack overflow.
const MAX_DEPTH: u32 = 32;

pub(crate) fn parse(text: &str) -> Res<Ast> {
    let tokens = lex(text)?;
    let mut p = Parser {
        text,
        tokens,
        at: 0,
        loc: None,
        depth: 0,
        labels: Vec::new(),
    };
    let mut ast = Ast::default();
    while p.at < p.tokens.len() {
        p.module_item(&mut ast)?;
    }
    Ok(ast)
}

struct Parser<'a> {
    text: &'a str,
    tokens: Vec<Token>,
    at: usize,
    loc: Option<(u32, u32)>,
    depth: u32,
    /// Of the blocks around.
    labels: Vec<HashSet<String>>,
}

impl Parser<'_> {
    fn line(&self) -> u32 {
        self.tokens
            .get(self.at)
            .or(self.tokens.last())
            .map_or(1, |t| t.line)
    }

    /// About what was read last.
    fn error<T>(&self, message: impl Into<String>) -> Res<T> {
        let last = self.tokens.get(self.at.saturating_sub(1));
        Err(ParseError::new(last.map_or(1, |t| t.line), message))
    }

    fn unexpected<T>(&self, wanted: &str) -> Res<T> {
        let found = match self.tokens.get(self.at) {
            Some(t) => format!("`{}`", &self.text[t.start..t.end]),
            None => "the end of the text".to_owned(),
        };
        let message = format!("expected {wanted}, found {found}");
        Err(ParseError::new(self.line(), message))
    }

    fn peek(&self) -> Option<&Tok> {
        self.tokens.get(self.at).map(|t| &t.tok)
    }

    fn peek_at(&self, ahead: usize) -> Option<&Tok> {
        self.tokens.get(self.at + ahead).map(|t| &t.tok)
    }

    fn is(&self, c: char) -> bool {
        self.peek() == Some(&Tok::Punct(c))
    }

    fn eat(&mut self, c: char) -> bool {
        let hit = self.is(c);
        self.at += usize::from(hit);
        hit
    }

    fn expect(&mut self, c: char) -> Res<()> {
        if self.eat(c) {
            Ok(())
        } else {
            self.unexpected(&format!("`{c}`"))
        }
    }

    fn ident(&mut self) -> Res<String> {
        match self.peek() {
            Some(Tok::Ident(s)) => {
                let s = s.clone();
                self.at += 1;
                Ok(s)
            }
            _ => self.unexpected("a name"),
        }
    }

    fn dot(&mut self) -> Option<String> {
        match self.peek() {
            Some(Tok::Dot(s)) => {
                let s = s.clone();
                self.at += 1;
                Some(s)
            }
            _ => None,
        }
    }

    fn int(&mut self) -> Res<i128> {
        let negative = self.eat('-');
        match self.peek() {
            Some(&Tok::Int(v)) => {
                self.at += 1;
                Ok(if negative { -v } else { v })
            }
            _ => self.unexpected("an integer"),
        }
    }

    fn u32(&mut self) -> Res<u32> {
        let v = self.int()?;
        u32::try_from(v).or_else(|_| self.error(format!("{v} is out of range")))
    }

    fn skip_line(&mut self) {
        let line = self.line();
        while self.tokens.get(self.at).is_some_and(|t| t.line == line) {
            self.at += 1;
        }
    }

    fn skip_to_semicolon(&mut self) {
        while self.at < self.tokens.len() && !self.eat(';') {
            self.at += 1;
        }
    }

    fn module_item(&mut self, ast: &mut Ast) -> Res<()> {
        let Some(word) = self.dot() else {
            if self.eat(';') {
                return Ok(());
            }
            return self.unexpected("a directive");
        };
        let mut external = false;
        let mut word = word;
        // Linkage comes before what is linked.
        while matches!(word.as_str(), "visible" | "extern" | "weak" | "common") {
            external |= word == "extern";
            let Some(next) = self.dot() else {
                return self.unexpected("a directive");
            };
            word = next;
        }
        match word.as_str() {
            "version" | "target" | "address_size" => self.skip_line(),
            "file" => {
                let n = self.u32()?;
                if let Some(Tok::Str(s)) = self.peek() {
                    ast.files.insert(n, s.clone());
                }
                self.skip_line();
            }
            "loc" => self.skip_line(),
            "section" => {
                while self.at < self.tokens.len() && !self.is('{') {
                    self.at += 1;
                }
                self.skip_braces()?;
            }
            "entry" | "func" => {
                let f = self.function(word == "entry")?;
                ast.funcs.push(f);
            }
            "global" | "const" | "shared" => {
                let space = match word.as_str() {
                    "global" => VarSpace::Global,
                    "const" => VarSpace::Const,
                    _ => VarSpace::Shared,
                };
                loop {
                    ast.vars.push(self.variable(space, external)?);
                    if !self.eat(',') {
                        break;
                    }
                }
                self.expect(';')?;
            }
            "alias" | "pragma" => self.skip_to_semicolon(),
            _ => return self.error(format!("unknown directive `.{word}`")),
        }
        Ok(())
    }

    fn skip_braces(&mut self) -> Res<()> {
        let mut depth = 0u32;
        while let Some(t) = self.peek() {
            match t {
                Tok::Punct('{') => depth += 1,
                Tok::Punct('}') => depth = depth.saturating_sub(1),
                _ => {}
            }
            self.at += 1;
            if depth == 0 {
                return Ok(());
            }
        }
        self.unexpected("`}`")
    }

    fn function(&mut self, entry: bool) -> Res<Func> {
        while let Some(Tok::Dot(word)) = self.peek() {
            // `.attribute(.unified(...))`, `.noreturn` may come before the name.
            if word == "attribute" {
                self.at += 1;
                self.skip_parens()?;
            } else {
                self.at += 1;
            }
        }
        let rets = if !entry && self.is('(') {
            self.params()?
        } else {
            Vec::new()
        };
        let name = self.ident()?;
        let params = if self.is('(') {
            self.params()?
        } else {
            Vec::new()
        };
        let mut f = Func {
            name,
            entry,
            params,
            rets,
            body: None,
            max_threads: None,
            required_block: None,
            required_cluster: None,
            max_registers: None,
        };
        while let Some(word) = self.dot() {
            match word.as_str() {
                "maxntid" | "reqntid" | "reqnctapercluster" => {
                    let mut d = [1u32; 3];
                    d[0] = self.u32()?;
                    for slot in &mut d[1..] {
                        if self.eat(',') {
                            *slot = self.u32()?;
                        }
                    }
                    let extents = Some((d[0], d[1], d[2]));
                    match word.as_str() {
                        "maxntid" => {
                            f.max_threads = Some(d[0].saturating_mul(d[1]).saturating_mul(d[2]));
                        }
                        "reqntid" => f.required_block = extents,
                        _ => f.required_cluster = extents,
                    }
                }
                "maxnreg" => f.max_registers = Some(self.u32()?),
                "minnctapersm" | "maxnctapersm" | "maxclusterrank" => {
                    self.u32()?;
                }
                "noreturn" | "explicitcluster" | "blocksareclusters" => {}
                "pragma" => self.skip_to_semicolon(),
                _ => return self.error(format!("unknown directive `.{word}` of a function")),
            }
        }
        if self.eat(';') {
            return Ok(f);
        }
        self.loc = None;
        self.expect('{')?;
        f.body = Some(self.block()?);
        Ok(f)
    }

    fn skip_parens(&mut self) -> Res<()> {
        self.expect('(')?;
        let mut depth = 1;
        while depth > 0 {
            match self.peek() {
                Some(Tok::Punct('(')) => depth += 1,
                Some(Tok::Punct(')')) => depth -= 1,
                Some(_) => {}
                None => return self.unexpected("`)`"),
            }
            self.at += 1;
        }
        Ok(())
    }

    fn params(&mut self) -> Res<Vec<Var>> {
        self.expect('(')?;
        let mut out = Vec::new();
        while !self.eat(')') {
            match self.dot().as_deref() {
                Some("param") => out.push(self.variable(VarSpace::Param, false)?),
                Some("reg") => {
                    return self.error("functions with register parameters are not supported");
                }
                _ => return self.unexpected("`.param`"),
            }
            self.eat(',');
        }
        Ok(out)
    }

    /// `.align 4 .b8 name[16] = {...}`, after the space.
    fn variable(&mut self, space: VarSpace, external: bool) -> Res<Var> {
        let line = self
            .tokens
            .get(self.at.saturating_sub(1))
            .map_or(1, |t| t.line);
        let mut align = None;
        let mut elem = 0;
        let mut vector = 1;
        while let Some(word) = self.dot() {
            match word.as_str() {
                "align" => {
                    let a = u64::from(self.u32()?);
                    if !a.is_power_of_two() || a > 1 << 20 {
                        return self.error("an alignment must be a power of two");
                    }
                    // Of a pointer parameter, it is the alignment of what is pointed to.
                    if elem == 0 {
                        align = Some(a);
                    }
                }
                "v2" => vector = 2,
                "v4" => vector = 4,
                "attribute" => self.skip_parens()?,
                "ptr" | "global" | "const" | "shared" | "local" | "managed" => {}
                "texref" | "samplerref" | "surfref" => elem = 8,
                _ => match type_size(&word) {
                    Some(s) => elem = s,
                    None => return self.error(format!("unknown type `.{word}`")),
                },
            }
        }
        let name = self.ident()?;
        let elem = elem * vector;
        let mut size = elem;
        let mut open = false;
        while self.eat('[') {
            if self.eat(']') {
                open = true;
                size = 0;
                continue;
            }
            let n = self.int()?;
            let n = u64::try_from(n)
                .ok()
                .and_then(|n| n.checked_mul(if open { elem } else { size }));
            size = match n {
                Some(n) if n < 1 << 40 => n,
                _ => return self.error("an array that is too large"),
            };
            self.expect(']')?;
        }
        let mut init = Vec::new();
        if self.eat('=') {
            self.initialiser(elem / vector, &mut init)?;
            let len: u64 = init.iter().map(Init::len).sum();
            if open {
                size = len;
            } else if len > size {
                return self.error(format!(
                    "the initialiser of `{name}` is longer than the variable"
                ));
            }
        }
        Ok(Var {
            name,
            line,
            space,
            align: align.unwrap_or(elem.max(1)),
            size,
            external,
            init,
        })
    }

    fn initialiser(&mut self, elem: u64, out: &mut Vec<Init>) -> Res<()> {
        if self.eat('{') {
            self.depth += 1;
            if self.depth > MAX_DEPTH {
                return self.error("nested too deeply");
            }
            while !self.eat('}') {
                self.initialiser(elem, out)?;
                if !self.eat(',') && !self.is('}') {
                    return self.unexpected("`,` or `}`");
                }
            }
            self.depth -= 1;
            return Ok(());
        }
        let size = elem as usize;
        let negative_float = self.is('-') && matches!(self.peek_at(1), Some(Tok::F64(_)));
        if negative_float {
            self.at += 1;
        }
        let sign = u64::from(negative_float) << 63;
        match self.peek().cloned() {
            Some(Tok::Ident(name)) => {
                self.at += 1;
                let inner = if self.eat('(') {
                    // `generic(name)`; a mask such as `0xff(name)` would begin with a number.
                    let n = self.ident()?;
                    self.expect(')')?;
                    n
                } else {
                    name
                };
                let offset = if self.eat('+') { self.int()? as i64 } else { 0 };
                out.push(Init::Symbol {
                    name: inner,
                    offset,
                    size: elem,
                });
            }
            Some(Tok::F32(bits)) => {
                self.at += 1;
                out.push(Init::Bytes(if size == 8 {
                    f64::from(f32::from_bits(bits)).to_le_bytes().to_vec()
                } else {
                    bits.to_le_bytes()[..size.min(4)].to_vec()
                }));
            }
            Some(Tok::F64(bits)) => {
                self.at += 1;
                let bits = bits ^ sign;
                out.push(Init::Bytes(if size == 4 {
                    (f64::from_bits(bits) as f32).to_le_bytes().to_vec()
                } else {
                    bits.to_le_bytes()[..size.min(8)].to_vec()
                }));
            }
            _ => {
                let v = self.int()?;
                out.push(Init::Bytes(v.to_le_bytes()[..size.min(16)].to_vec()));
            }
        }
        Ok(())
    }

    /// Statements up to and with the closing brace.
    fn block(&mut self) -> Res<Vec<Stmt>> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return self.error("nested too deeply");
        }
        let mut out = Vec::new();
        self.labels.push(HashSet::new());
        while !self.eat('}') {
            self.statement(&mut out)?;
        }
        self.labels.pop();
        self.depth -= 1;
        Ok(out)
    }

    fn statement(&mut self, out: &mut Vec<Stmt>) -> Res<()> {
        match self.peek().cloned() {
            Some(Tok::Punct(';')) => self.at += 1,
            Some(Tok::Punct('{')) => {
                self.at += 1;
                let b = self.block()?;
                out.push(Stmt::Block(b));
            }
            Some(Tok::Dot(word)) => {
                self.at += 1;
                self.directive(&word, out)?;
            }
            Some(Tok::Punct('@')) => out.push(self.instruction()?),
            Some(Tok::Ident(name)) => {
                if self.peek_at(1) == Some(&Tok::Punct(':')) {
                    self.at += 2;
                    let labels = self.labels.last_mut();
                    if labels.is_some_and(|labels| !labels.insert(name.clone())) {
                        return self.error(format!("a second label `{name}`"));
                    }
                    match self.peek() {
                        Some(Tok::Dot(d)) if d == "branchtargets" => {
                            self.at += 1;
                            let mut targets = vec![self.ident()?];
                            while self.eat(',') {
                                targets.push(self.ident()?);
                            }
                            self.expect(';')?;
                            out.push(Stmt::Targets(name, targets));
                        }
                        Some(Tok::Dot(d)) if d == "callprototype" || d == "calltargets" => {
                            self.skip_to_semicolon()
                        }
                        _ => out.push(Stmt::Label(name)),
                    }
                } else {
                    out.push(self.instruction()?);
                }
            }
            _ => return self.unexpected("a statement"),
        }
        Ok(())
    }

    fn directive(&mut self, word: &str, out: &mut Vec<Stmt>) -> Res<()> {
        match word {
            "loc" => {
                let file = self.u32()?;
                let line = self.u32()?;
                self.loc = Some((file, line));
                self.skip_line();
            }
            "pragma" => self.skip_to_semicolon(),
            "reg" => {
                let line = self.tokens[self.at - 1].line;
                let mut ty = String::new();
                while let Some(w) = self.dot() {
                    if w == "v2" || w == "v4" {
                        return self.error("vector registers are not supported");
                    }
                    ty = w;
                }
                let mut names = Vec::new();
                loop {
                    let name = self.ident()?;
                    let count = if self.eat('<') {
                        let n = self.u32()?;
                        self.expect('>')?;
                        Some(n)
                    } else {
                        None
                    };
                    if count.is_some_and(|c| c > 1 << 20) {
                        return self.error("too many registers");
                    }
                    names.push(RegNames { name, count });
                    if !self.eat(',') {
                        break;
                    }
                }
                self.expect(';')?;
                out.push(Stmt::Reg { line, ty, names });
            }
            "shared" | "local" | "param" | "global" | "const" => {
                let space = match word {
                    "shared" => VarSpace::Shared,
                    "local" => VarSpace::Local,
                    "param" => VarSpace::Param,
                    "global" => VarSpace::Global,
                    _ => VarSpace::Const,
                };
                loop {
                    out.push(Stmt::Var(self.variable(space, false)?));
                    if !self.eat(',') {
                        break;
                    }
                }
                self.expect(';')?;
            }
            _ => return self.error(format!("unknown directive `.{word}`")),
        }
        Ok(())
    }

    fn instruction(&mut self) -> Res<Stmt> {
        let first = self.at;
        let line = self.line();
        let guard = if self.eat('@') {
            let negated = self.eat('!');
            Some((self.ident()?, negated))
        } else {
            None
        };
        let mut op = vec![self.ident()?];
        while let Some(w) = self.dot() {
            op.push(w);
        }
        let mut operands = Vec::new();
        while !self.is(';') {
            operands.push(self.operand()?);
            if !self.eat(',') && !self.is(';') {
                return self.unexpected("`,` or `;`");
            }
            if self.is(';') && self.tokens[self.at - 1].tok == Tok::Punct(',') {
                return self.unexpected("an operand");
            }
        }
        let (from, to) = (self.tokens[first].start, self.tokens[self.at].start);
        self.expect(';')?;
        let text = self.text[from..to]
            .split_whitespace()
            .collect::<Vec<_>>()
            .join(" ");
        Ok(Stmt::Inst(Rc::new(Inst {
            guard,
            op,
            operands,
            line,
            loc: self.loc,
            text,
        })))
    }

    fn list(&mut self, close: char) -> Res<Vec<Operand>> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return self.error("nested too deeply");
        }
        let mut out = Vec::new();
        while !self.eat(close) {
            out.push(self.operand()?);
            if !self.eat(',') && !self.is(close) {
                return self.unexpected("`,`");
            }
        }
        self.depth -= 1;
        Ok(out)
    }

    fn operand(&mut self) -> Res<Operand> {
        if self.eat('{') {
            return Ok(Operand::Vector(self.list('}')?));
        }
        if self.eat('(') {
            return Ok(Operand::List(self.list(')')?));
        }
        if self.eat('[') {
            return self.address();
        }
        if self.eat('!') {
            return Ok(Operand::Not(self.name()?));
        }
        let value = match self.peek() {
            Some(Tok::Ident(s)) if s == "_" => {
                self.at += 1;
                Operand::Sink
            }
            Some(Tok::Ident(_)) => {
                let name = self.name()?;
                if self.is('+') {
                    self.at += 1;
                    return Ok(Operand::Offset(name, self.int()? as i64));
                }
                Operand::Name(name)
            }
            Some(&Tok::F32(v)) => {
                self.at += 1;
                Operand::F32(v)
            }
            Some(&Tok::F64(v)) => {
                self.at += 1;
                Operand::F64(v)
            }
            Some(Tok::Punct('-')) if matches!(self.peek_at(1), Some(Tok::F64(_) | Tok::F32(_))) => {
                self.at += 2;
                match self.tokens[self.at - 1].tok {
                    Tok::F64(v) => Operand::F64(v ^ 1 << 63),
                    Tok::F32(v) => Operand::F32(v ^ 1 << 31),
                    _ => return self.unexpected("a number"),
                }
            }
            _ => Operand::Int(self.int()?),
        };
        if self.eat('|') {
            self.depth += 1;
            if self.depth > MAX_DEPTH {
                return self.error("nested too deeply");
            }
            let second = self.operand()?;
            self.depth -= 1;
            return Ok(Operand::Pair(Box::new(value), Box::new(second)));
        }
        Ok(value)
    }

    /// A name with its component, such as `%tid.x`.
    fn name(&mut self) -> Res<String> {
        let mut s = self.ident()?;
        if let Some(Tok::Dot(c)) = self.peek() {
            s = format!("{s}.{c}");
            self.at += 1;
        }
        Ok(s)
    }

    fn address(&mut self) -> Res<Operand> {
        let (base, mut offset) = match self.peek() {
            Some(Tok::Ident(_)) => (AddrBase::Name(self.name()?), 0),
            _ => (AddrBase::None, self.int()? as i64),
        };
        while self.is('+') || self.is('-') {
            let minus = self.is('-');
            self.at += 1;
            let v = self.int()? as i64;
            offset = if minus {
                offset.wrapping_sub(v)
            } else {
                offset.wrapping_add(v)
            };
        }
        // Coordinates of a tensor copy.
        let mut rest = Vec::new();
        while self.eat(',') {
            rest.push(self.operand()?);
        }
        self.expect(']')?;
        Ok(Operand::Addr { base, offset, rest })
    }
}

impl Init {
    pub(crate) fn len(&self) -> u64 {
        match self {
            Self::Bytes(b) => b.len() as u64,
            Self::Symbol { size, .. } => *size,
        }
    }
}
