//! Parses PTX text to the syntax tree.

use crate::ast::*;
use crate::lexer::{Spanned, Token, lex};
use std::collections::HashMap;

/// PTX text that is not PTX.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("PTX line {line}: {message}")]
#[non_exhaustive]
pub struct ParseError {
    /// Line in the PTX text, from 1.
    pub line: u32,
    /// What is wrong.
    pub message: String,
}

impl ParseError {
    pub(crate) fn new(line: u32, message: impl Into<String>) -> Self {
        ParseError {
            line,
            message: message.into(),
        }
    }
}

type Result<T> = std::result::Result<T, ParseError>;

/// Variables larger than this are refused: the bound of what an initialiser may allocate.
const MAX_VAR: u64 = 1 << 32;
/// Braces, vectors and initialisers nested deeper than this are refused.
const MAX_DEPTH: usize = 64;

pub fn parse(text: &str) -> Result<Module> {
    let tokens = lex(text)?;
    let mut p = Parser {
        text,
        tokens,
        at: 0,
        depth: 0,
    };
    p.module()
}

struct Parser<'a> {
    text: &'a str,
    tokens: Vec<Spanned<'a>>,
    at: usize,
    depth: usize,
}

/// What a function body collects.
#[derive(Default)]
struct Body {
    regs: Vec<RegDecl>,
    vars: Vec<Var>,
    stmts: Vec<Stmt>,
    targets: HashMap<String, Vec<String>>,
    /// Names declared in inner scopes, innermost last; each maps to a unique name.
    scopes: Vec<HashMap<String, String>>,
    /// Register families `%r<n>` of inner scopes: prefix, count, unique prefix.
    families: Vec<Vec<(String, u32, String)>>,
    unique: u32,
    loc: Option<(u32, u32)>,
}

impl Body {
    fn rename(&mut self, name: &str) -> String {
        if self.scopes.len() <= 1 {
            return name.to_owned();
        }
        self.unique += 1;
        let unique = format!("{name}@{}", self.unique);
        if let Some(s) = self.scopes.last_mut() {
            s.insert(name.to_owned(), unique.clone());
        }
        unique
    }

    fn resolve(&self, name: &str) -> String {
        for (scope, families) in self.scopes.iter().zip(&self.families).rev() {
            if let Some(n) = scope.get(name) {
                return n.clone();
            }
            for (prefix, count, unique) in families {
                if let Some(n) = name
                    .strip_prefix(prefix.as_str())
                    .and_then(|d| d.parse::<u32>().ok())
                    && n < *count
                {
                    return format!("{unique}{n}");
                }
            }
        }
        name.to_owned()
    }
}

impl<'a> Parser<'a> {
    fn line(&self) -> u32 {
        self.tokens
            .get(self.at)
            .or(self.tokens.last())
            .map_or(1, |t| t.line)
    }

    fn err<T>(&self, message: impl Into<String>) -> Result<T> {
        Err(ParseError::new(self.line(), message))
    }

    fn peek(&self) -> Option<&Token<'a>> {
        self.tokens.get(self.at).map(|t| &t.token)
    }

    fn next(&mut self) -> Result<Token<'a>> {
        match self.tokens.get(self.at) {
            Some(t) => {
                self.at += 1;
                Ok(t.token.clone())
            }
            None => self.err("unexpected end of text"),
        }
    }

    fn is(&self, c: u8) -> bool {
        self.peek() == Some(&Token::Punct(c))
    }

    fn eat(&mut self, c: u8) -> bool {
        let yes = self.is(c);
        self.at += usize::from(yes);
        yes
    }

    fn expect(&mut self, c: u8) -> Result<()> {
        if self.eat(c) {
            Ok(())
        } else {
            self.err(format!("expected `{}`", c as char))
        }
    }

    fn word(&mut self) -> Result<&'a str> {
        match self.next()? {
            Token::Word(w) => Ok(w),
            other => {
                self.at -= 1;
                self.err(format!("expected a name, not {other:?}"))
            }
        }
    }

    fn int(&mut self) -> Result<i64> {
        let negative = self.eat(b'-');
        match self.next()? {
            Token::Int(i) => Ok(if negative { i.wrapping_neg() } else { i }),
            other => {
                self.at -= 1;
                self.err(format!("expected an integer, not {other:?}"))
            }
        }
    }

    fn skip_line(&mut self) {
        let line = self.line();
        while self.tokens.get(self.at).is_some_and(|t| t.line == line) {
            self.at += 1;
        }
    }

    fn skip_braces(&mut self) -> Result<()> {
        self.expect(b'{')?;
        let mut depth = 1;
        while depth > 0 {
            match self.next()? {
                Token::Punct(b'{') => depth += 1,
                Token::Punct(b'}') => depth -= 1,
                _ => {}
            }
        }
        Ok(())
    }

    fn skip_statement(&mut self) -> Result<()> {
        while self.next()? != Token::Punct(b';') {}
        Ok(())
    }

    fn module(&mut self) -> Result<Module> {
        let mut m = Module::default();
        while let Some(token) = self.peek() {
            let Token::Word(w) = *token else {
                return self.err("expected a directive");
            };
            match w {
                ".version" | ".target" | ".address_size" => self.skip_line(),
                ".file" => self.file(&mut m)?,
                ".section" => {
                    while !self.is(b'{') {
                        self.next()?;
                    }
                    self.skip_braces()?;
                }
                ".pragma" | ".alias" => self.skip_statement()?,
                _ => self.declaration(&mut m)?,
            }
        }
        Ok(m)
    }

    fn file(&mut self, m: &mut Module) -> Result<()> {
        let line = self.line();
        self.at += 1;
        let n = self.int()?;
        if let Token::Str(s) = self.next()? {
            m.files.insert(n as u32, s.to_owned());
        }
        while self.tokens.get(self.at).is_some_and(|t| t.line == line) {
            self.at += 1;
        }
        Ok(())
    }

    fn declaration(&mut self, m: &mut Module) -> Result<()> {
        let mut external = false;
        loop {
            let line = self.line();
            match self.word()? {
                ".extern" => external = true,
                ".visible" | ".weak" | ".common" => {}
                ".attribute" => {
                    while !self.eat(b')') {
                        self.next()?;
                    }
                }
                ".entry" => return self.function(m, true, line),
                ".func" => return self.function(m, false, line),
                w @ (".global" | ".const" | ".shared") => {
                    let space = match w {
                        ".global" => VarSpace::Global,
                        ".const" => VarSpace::Const,
                        _ => VarSpace::Shared,
                    };
                    for var in self.variables(space, external)? {
                        if space == VarSpace::Shared {
                            m.shared.push(var);
                        } else {
                            m.globals.push(var);
                        }
                    }
                    return self.expect(b';');
                }
                w => {
                    self.at -= 1;
                    return self.err(format!("unknown directive `{w}`"));
                }
            }
        }
    }

    /// `[.align n] [.v2] .type name [dims] [= init], ...`, after the state space.
    fn variables(&mut self, space: VarSpace, external: bool) -> Result<Vec<Var>> {
        let mut out = Vec::new();
        let mut align = 0u64;
        let mut width = 0u64;
        let mut lanes = 1u64;
        loop {
            match self.word()? {
                ".align" => align = self.int()? as u64,
                ".v2" => lanes = 2,
                ".v4" => lanes = 4,
                // `.ptr .global .align n`: hints on a pointer parameter.
                ".ptr" => loop {
                    match self.peek() {
                        Some(Token::Word(".global" | ".shared" | ".const" | ".local")) => {
                            self.at += 1;
                        }
                        Some(Token::Word(".align")) => {
                            self.at += 1;
                            self.int()?;
                        }
                        _ => break,
                    }
                },
                w if w.starts_with('.') => match type_width(w) {
                    Some(n) => width = n,
                    None => {
                        self.at -= 1;
                        return self.err(format!("unknown type `{w}`"));
                    }
                },
                _ => {
                    self.at -= 1;
                    break;
                }
            }
        }
        if width == 0 {
            return self.err("a variable without a type");
        }
        loop {
            let name = self.word()?.to_owned();
            let mut size = Some(width * lanes);
            let mut unsized_ = false;
            while self.eat(b'[') {
                if self.eat(b']') {
                    unsized_ = true;
                    continue;
                }
                let n = self.int()?;
                self.expect(b']')?;
                size = size.and_then(|s| s.checked_mul(u64::try_from(n).ok()?));
            }
            let init = if self.eat(b'=') {
                let mut init = Init::default();
                self.initialiser(width as usize, &mut init)?;
                Some(init)
            } else {
                None
            };
            let mut size = size.filter(|&s| s <= MAX_VAR);
            if unsized_ {
                size = Some(init.as_ref().map_or(0, |i| i.bytes.len() as u64));
            }
            let Some(size) = size else {
                return self.err(format!("variable `{name}` is too large"));
            };
            if init.as_ref().is_some_and(|i| i.bytes.len() as u64 > size) {
                return self.err(format!("initialiser of `{name}` is too long"));
            }
            let align = if align == 0 { width * lanes } else { align };
            if !align.is_power_of_two() || align > 1 << 16 {
                return self.err(format!("bad alignment of `{name}`"));
            }
            out.push(Var {
                name,
                space,
                size,
                align,
                init,
                external: external || unsized_ && space == VarSpace::Shared,
            });
            // In a parameter list the comma belongs to the list.
            if space == VarSpace::Param || !self.eat(b',') {
                return Ok(out);
            }
        }
    }

    fn initialiser(&mut self, width: usize, init: &mut Init) -> Result<()> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return self.err("nested too deep");
        }
        if self.eat(b'{') {
            while !self.eat(b'}') {
                self.initialiser(width, init)?;
                self.eat(b',');
            }
            self.depth -= 1;
            return Ok(());
        }
        let at = init.bytes.len();
        let mut value = 0u64;
        let negative = self.eat(b'-');
        match self.next()? {
            Token::Int(i) => value = if negative { i.wrapping_neg() } else { i } as u64,
            Token::F32(b) => value = u64::from(b),
            Token::F64(b) if width == 4 => value = u64::from((f64::from_bits(b) as f32).to_bits()),
            Token::F64(b) => value = b,
            Token::Word(w) => {
                let mut symbol = w;
                if w == "generic" {
                    self.expect(b'(')?;
                    symbol = self.word()?;
                    self.expect(b')')?;
                }
                let addend = if self.eat(b'+') { self.int()? } else { 0 };
                init.symbols.push((at, width, symbol.to_owned(), addend));
            }
            _ => {
                self.at -= 1;
                return self.err("bad initialiser");
            }
        }
        init.bytes
            .extend_from_slice(&value.to_le_bytes()[..width.min(8)]);
        self.depth -= 1;
        Ok(())
    }

    fn params(&mut self) -> Result<Vec<Var>> {
        let mut out = Vec::new();
        while !self.eat(b')') {
            match self.word()? {
                ".param" => out.extend(self.variables(VarSpace::Param, false)?),
                // Functions with an internal ABI may take registers; we do not.
                w => return self.err(format!("unsupported parameter space `{w}`")),
            }
            self.eat(b',');
        }
        Ok(out)
    }

    fn triple(&mut self) -> Result<[u32; 3]> {
        let mut t = [1; 3];
        for (i, v) in t.iter_mut().enumerate() {
            if i == 0 || self.eat(b',') {
                *v = self.int()? as u32;
            }
        }
        Ok(t)
    }

    fn function(&mut self, m: &mut Module, entry: bool, line: u32) -> Result<()> {
        let returns = if self.eat(b'(') {
            self.params()?
        } else {
            Vec::new()
        };
        let name = self.word()?.to_owned();
        let params = if self.eat(b'(') {
            self.params()?
        } else {
            Vec::new()
        };
        let mut f = Function {
            name,
            entry,
            params,
            returns,
            required_block: None,
            max_block: None,
            regs: Vec::new(),
            vars: Vec::new(),
            body: None,
            targets: HashMap::new(),
            line,
        };
        loop {
            if self.eat(b';') {
                break;
            }
            if self.is(b'{') {
                let mut body = Body::default();
                self.block(&mut body, m)?;
                f.regs = body.regs;
                f.vars = body.vars;
                f.targets = body.targets;
                f.body = Some(body.stmts);
                break;
            }
            match self.word()? {
                ".maxntid" => f.max_block = Some(self.triple()?),
                ".reqntid" => f.required_block = Some(self.triple()?),
                ".minnctapersm" | ".maxnreg" | ".maxclusterrank" | ".abi_preserve" => {
                    self.int()?;
                }
                ".reqnctapercluster" => {
                    self.triple()?;
                }
                ".noreturn" | ".explicitcluster" | ".blocksareclusters" => {}
                ".pragma" => self.skip_statement()?,
                w => return self.err(format!("unknown function directive `{w}`")),
            }
        }
        // A declaration is superseded by its definition.
        if let Some(old) = m.functions.iter_mut().find(|o| o.name == f.name) {
            if f.body.is_some() {
                *old = f;
            }
        } else {
            m.functions.push(f);
        }
        Ok(())
    }

    fn block(&mut self, body: &mut Body, m: &mut Module) -> Result<()> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return self.err("nested too deep");
        }
        self.expect(b'{')?;
        body.scopes.push(HashMap::new());
        body.families.push(Vec::new());
        self.forward_labels(body);
        while !self.eat(b'}') {
            self.statement(body, m)?;
        }
        body.scopes.pop();
        body.families.pop();
        self.depth -= 1;
        Ok(())
    }

    /// Renames the labels of an inner scope before they are used: branches go forward, and
    /// inlined assembly repeats its labels.
    fn forward_labels(&mut self, body: &mut Body) {
        let (mut i, mut depth) = (self.at, 1);
        while let Some(t) = self.tokens.get(i)
            && depth > 0
        {
            match t.token {
                Token::Punct(b'{') => depth += 1,
                Token::Punct(b'}') => depth -= 1,
                Token::Word(w)
                    if depth == 1
                        && self.tokens.get(i + 1).map(|t| &t.token)
                            == Some(&Token::Punct(b':')) =>
                {
                    body.rename(w);
                }
                _ => {}
            }
            i += 1;
        }
    }

    fn statement(&mut self, body: &mut Body, m: &mut Module) -> Result<()> {
        if self.is(b'{') {
            return self.block(body, m);
        }
        if self.eat(b';') {
            return Ok(());
        }
        let start = self.at;
        if self.is(b'@') {
            return self.instruction(body);
        }
        let w = self.word()?;
        match w {
            ".loc" => {
                let file = self.int()? as u32;
                let line = self.int()? as u32;
                // Line 0 marks code without a source line.
                body.loc = (line != 0).then_some((file, line));
                self.at = start;
                self.skip_line();
            }
            ".file" => {
                self.at = start;
                self.file(m)?;
            }
            ".pragma" => self.skip_statement()?,
            ".reg" => self.registers(body)?,
            ".shared" | ".local" | ".param" | ".global" | ".const" | ".extern" | ".align" => {
                let mut w = w;
                let external = w == ".extern";
                if external {
                    w = self.word()?;
                }
                let space = match w {
                    ".shared" => VarSpace::Shared,
                    ".local" => VarSpace::Local,
                    ".param" => VarSpace::Param,
                    ".global" => VarSpace::Global,
                    ".const" => VarSpace::Const,
                    _ => return self.err(format!("unknown directive `{w}`")),
                };
                for mut v in self.variables(space, external)? {
                    v.name = body.rename(&v.name);
                    if matches!(space, VarSpace::Global | VarSpace::Const) {
                        m.globals.push(v);
                    } else {
                        body.vars.push(v);
                    }
                }
                self.expect(b';')?;
            }
            _ if self.is(b':') => {
                self.at += 1;
                match self.peek() {
                    Some(Token::Word(".branchtargets" | ".calltargets")) => {
                        self.at += 1;
                        let mut list = Vec::new();
                        while !self.eat(b';') {
                            list.push(self.word()?.to_owned());
                            self.eat(b',');
                        }
                        body.targets.insert(w.to_owned(), list);
                    }
                    Some(Token::Word(".callprototype")) => self.skip_statement()?,
                    _ => {
                        let name = body.resolve(w);
                        body.stmts.push(Stmt::Label(name));
                    }
                }
            }
            _ if w.starts_with('.') => {
                self.at = start;
                return self.err(format!("unknown directive `{w}`"));
            }
            _ => {
                self.at = start;
                self.instruction(body)?;
            }
        }
        Ok(())
    }

    fn registers(&mut self, body: &mut Body) -> Result<()> {
        let mut ty = self.word()?;
        if matches!(ty, ".v2" | ".v4") {
            return self.err("vector registers are not supported");
        }
        ty = ty.trim_start_matches('.');
        loop {
            let name = self.word()?;
            let count = if self.eat(b'<') {
                let n = self.int()?;
                self.expect(b'>')?;
                if !(0..=1 << 20).contains(&n) {
                    return self.err("too many registers");
                }
                Some(n as u32)
            } else {
                None
            };
            let unique = match count {
                Some(n) if body.scopes.len() > 1 => {
                    body.unique += 1;
                    let unique = format!("{name}@{}_", body.unique);
                    if let Some(f) = body.families.last_mut() {
                        f.push((name.to_owned(), n, unique.clone()));
                    }
                    unique
                }
                Some(_) => name.to_owned(),
                None => body.rename(name),
            };
            body.regs.push(RegDecl {
                name: unique,
                count,
                ty: ty.to_owned(),
            });
            if !self.eat(b',') {
                break;
            }
        }
        self.expect(b';')
    }

    fn instruction(&mut self, body: &mut Body) -> Result<()> {
        let first = self.at;
        let line = self.line();
        let guard = if self.eat(b'@') {
            let not = self.eat(b'!');
            let p = self.word()?;
            Some((body.resolve(p), not))
        } else {
            None
        };
        let opcode = self.word()?;
        let mut args = Vec::new();
        while !self.eat(b';') {
            args.push(self.argument(body)?);
            if !self.eat(b',') && !self.is(b';') {
                return self.err(format!("expected `,` or `;` in `{opcode}`"));
            }
        }
        let (from, to) = (self.tokens[first].start, self.tokens[self.at - 1].end);
        let text = self.text.get(from..to).unwrap_or("");
        body.stmts.push(Stmt::Inst(Box::new(Inst {
            guard,
            op: opcode.split('.').map(str::to_owned).collect(),
            args,
            line,
            loc: body.loc,
            text: text.split_whitespace().collect::<Vec<_>>().join(" "),
        })));
        Ok(())
    }

    fn argument(&mut self, body: &Body) -> Result<Arg> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return self.err("nested too deep");
        }
        let arg = self.single(body)?;
        let arg = if self.eat(b'|') {
            Arg::Pair(Box::new(arg), Box::new(self.single(body)?))
        } else {
            arg
        };
        self.depth -= 1;
        Ok(arg)
    }

    fn single(&mut self, body: &Body) -> Result<Arg> {
        let list = |p: &mut Self, end: u8| -> Result<Vec<Arg>> {
            let mut v = Vec::new();
            while !p.eat(end) {
                v.push(p.argument(body)?);
                if !p.eat(b',') && !p.is(end) {
                    return p.err(format!("expected `{}`", end as char));
                }
            }
            Ok(v)
        };
        match self.next()? {
            Token::Punct(b'{') => Ok(Arg::Vector(list(self, b'}')?)),
            Token::Punct(b'(') => Ok(Arg::List(list(self, b')')?)),
            Token::Punct(b'[') => {
                let mut items = list(self, b']')?;
                if items.is_empty() {
                    return self.err("empty address");
                }
                let more = items.split_off(1);
                match items.pop() {
                    Some(Arg::Offset(n, o)) => Ok(Arg::Address(Box::new(Arg::Name(n)), o, more)),
                    Some(base) => Ok(Arg::Address(Box::new(base), 0, more)),
                    None => self.err("empty address"),
                }
            }
            Token::Punct(b'!') => {
                let w = self.word()?;
                Ok(Arg::Not(body.resolve(w)))
            }
            Token::Punct(b'-') => match self.next()? {
                Token::Int(i) => Ok(Arg::Int(i.wrapping_neg())),
                Token::F32(b) => Ok(Arg::F32(b ^ 1 << 31)),
                Token::F64(b) => Ok(Arg::F64(b ^ 1 << 63)),
                _ => self.err("expected a number after `-`"),
            },
            Token::Punct(b'~') => {
                let i = self.int()?;
                Ok(Arg::Int(!i))
            }
            Token::Int(i) => Ok(Arg::Int(i)),
            Token::F32(b) => Ok(Arg::F32(b)),
            Token::F64(b) => Ok(Arg::F64(b)),
            Token::Word("_") => Ok(Arg::Sink),
            Token::Word(w) => {
                let name = body.resolve(w);
                // `+-4` and `-4` are both an offset of minus four.
                if self.eat(b'+') || self.is(b'-') {
                    Ok(Arg::Offset(name, self.int()?))
                } else {
                    Ok(Arg::Name(name))
                }
            }
            other => self.err(format!("unexpected {other:?}")),
        }
    }
}

/// Bytes of a fundamental type, `.pred` counting as one.
pub fn type_width(ty: &str) -> Option<u64> {
    Some(match ty.trim_start_matches('.') {
        "b8" | "u8" | "s8" | "pred" => 1,
        "b16" | "u16" | "s16" | "f16" | "bf16" => 2,
        "b32" | "u32" | "s32" | "f32" | "f16x2" | "bf16x2" | "tf32" => 4,
        "b64" | "u64" | "s64" | "f64" => 8,
        "b128" => 16,
        _ => return None,
    })
}
