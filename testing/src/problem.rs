//! Calls as the kernels get them, for whatever runs kernels.

use std::fmt;

use flash_alibi::plan::Paged;
use flash_alibi::{Attention, Layout, cpu, cuda};

use crate::tensor::bits;
use crate::{LaidOut, Rows, Tensor, UNTOUCHED};

/// An element type that kernels take.
pub trait OnDevice: cpu::Element + cuda::Element {}

impl<T: cpu::Element + cuda::Element> OnDevice for T {}

/// A tensor in a buffer: its first element is `data[offset]`.
#[derive(Clone, Copy)]
pub struct Placed<'a, T> {
    /// The whole buffer.
    pub data: &'a [T],
    /// Elements before the first.
    pub offset: usize,
    /// Shape and strides.
    pub layout: Layout,
}

/// A call, with all that it reads and with what its outputs hold before.
#[derive(Clone, Copy)]
pub struct Problem<'a, T> {
    /// The layer.
    pub attention: &'a Attention,
    /// Queries.
    pub q: Placed<'a, T>,
    /// Keys, or their pool.
    pub k: Placed<'a, T>,
    /// Values, or their pool.
    pub v: Placed<'a, T>,
    /// What out holds before.
    pub out: Placed<'a, T>,
    /// What lse holds before, if it is wanted.
    pub lse: Option<&'a [f32]>,
    /// `[batch + 1]`, of packed queries.
    pub cu_seqlens_q: Option<&'a [i32]>,
    /// `[batch + 1]`, of packed keys.
    pub cu_seqlens_k: Option<&'a [i32]>,
    /// `[batch]`.
    pub seqused_k: Option<&'a [i32]>,
    /// `[batch]`.
    pub leftpad_k: Option<&'a [i32]>,
    /// `[batch]`: where the first query stands.
    pub offset: Option<&'a [i32]>,
    /// The pages of each sequence, and the shape of that table.
    pub block_table: Option<(&'a [i32], Paged)>,
    /// Centres, and the radii of pages.
    pub radii: Option<(&'a [f32], &'a [f32])>,
}

/// What outputs hold afterwards.
#[derive(Debug)]
pub struct Attended<T> {
    /// The whole buffer.
    pub out: Vec<T>,
    /// Empty where it was not wanted.
    pub lse: Vec<f32>,
}

/// What went wrong, in words.
#[derive(Debug)]
pub struct Failure(pub String);

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Failure {}

impl Failure {
    pub(crate) fn new(error: impl fmt::Display) -> Self {
        Self(error.to_string())
    }
}

impl<T: OnDevice> LaidOut<T> {
    /// Runs a kernel twice on buffers full of a mark, and checks that it stays wherever no sequence's row is.
    /// Returns what the first run said beside its outputs.
    pub(crate) fn attend_twice<R>(
        &self,
        attend: impl Fn(&Problem<'_, T>, u64) -> Result<(Attended<T>, R), Failure>,
    ) -> Result<(Vec<Rows>, R), String> {
        let out = self.out.like(T::from_f32(UNTOUCHED));
        let lse = vec![UNTOUCHED; self.lse_len()];
        let problem = self.problem(&out, Some(&lse));
        let (attended, report) = attend(&problem, 1).map_err(|e| e.to_string())?;
        let problem = self.problem(&out, None);
        let (again, _) = attend(&problem, 2).map_err(|e| e.to_string())?;
        if bits(&attended.out) != bits(&again.out) {
            return Err("out depends on the order, or on whether lse is wanted".into());
        }
        Ok((self.rows(&attended)?, report))
    }

    /// This case for a kernel, with what its outputs hold before.
    pub fn problem<'a>(&'a self, out: &'a Tensor<T>, lse: Option<&'a [f32]>) -> Problem<'a, T> {
        Problem {
            attention: &self.attention,
            q: self.q.placed(),
            k: self.k.placed(),
            v: self.v.placed(),
            out: out.placed(),
            lse,
            cu_seqlens_q: self.cu.as_ref().map(|(q, _)| &q[..]),
            cu_seqlens_k: self.cu.as_ref().map(|(_, k)| &k[..]),
            seqused_k: self.seqused_k.as_deref(),
            leftpad_k: self.leftpad_k.as_deref(),
            offset: self.offset.as_deref(),
            block_table: None,
            radii: None,
        }
    }

    /// What a kernel made of each sequence, on buffers full of a mark.
    pub fn rows(&self, attended: &Attended<T>) -> Result<Vec<Rows>, String> {
        let out = Tensor {
            data: attended.out.clone(),
            ..self.out.clone()
        };
        self.gather(&out, &attended.lse, UNTOUCHED)
    }
}

impl<T: OnDevice> Tensor<T> {
    pub(crate) fn placed(&self) -> Placed<'_, T> {
        let (shape, strides) = self.shape_and_strides();
        Placed {
            data: &self.data,
            offset: self.offset,
            layout: Layout::new("tensor", &shape, &strides).expect("the strides fit"),
        }
    }
}
