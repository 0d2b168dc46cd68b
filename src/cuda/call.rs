//! One call: what it takes is checked, ordered with its stream, and handed to the kernels.

use cudarc::driver::CudaStream;

use super::buffer::{Checks, Lent};
use super::slopes::UploadedSlopes;
use super::{Buffer, BufferMut, CacheElement, Element, Error, Inputs, Kernels, Result, ViewMut};
use crate::attention::Attention;
use crate::error;
use crate::plan::{self, Addresses, Plan};
use crate::sequences::check_lse;
use crate::tensor::Layout;

/// The most queries a sequence for which the kernels for decoding are the faster ones.
const MAX_DECODED: usize = 16;

/// Workspaces begin at a multiple of so many bytes: kernels access 16 at once.
const ALIGNMENT: u64 = 16;

/// Which kernels compute a call.
#[derive(Clone, Copy)]
pub(crate) enum Method {
    Prefill,
    Decode,
}

/// Where the slopes of a call lie.
#[derive(Clone, Copy)]
pub(crate) enum Slopes<'a> {
    /// With the kernels of the call.
    Uploaded(&'a UploadedSlopes),
    #[cfg_attr(not(feature = "candle-cuda"), expect(dead_code, reason = "candle's"))]
    Buffer(&'a dyn Buffer<f32>),
}

/// What a call takes beside its stream.
pub(crate) struct Call<'a, Q, KV> {
    pub(crate) method: Method,
    pub(crate) slopes: Slopes<'a>,
    pub(crate) inputs: &'a Inputs<'a, Q, KV>,
    pub(crate) out: ViewMut<'a, Q>,
    pub(crate) lse: Option<&'a mut dyn BufferMut<f32>>,
    pub(crate) workspace: &'a mut dyn BufferMut<u8>,
    pub(crate) report: Option<&'a mut dyn BufferMut<u64>>,
}

impl<Q: Element, KV: CacheElement<Q>> Inputs<'_, Q, KV> {
    /// The faster of the kernels: by the query rows that a sequence may have, not by those that it has, since these lie on
    /// the device.
    pub(crate) fn method(&self) -> Method {
        match self.sequences.max_seqlen_q.min(self.q.layout.rows) <= MAX_DECODED {
            true => Method::Decode,
            false => Method::Prefill,
        }
    }

    fn plan(
        &self,
        method: Method,
        kernels: &Kernels,
        attention: &Attention,
        out: Layout,
    ) -> error::Result<Plan> {
        let (q, k, v) = (self.q.layout, self.k.layout, self.v.layout);
        let shape = self.sequences.check(attention, [q, k, v, out])?;
        let call = plan::Call {
            dtype: Q::DTYPE,
            q,
            k,
            v,
            out,
            packed: shape.packed,
            paged: shape.paged,
        };
        match method {
            Method::Prefill => Plan::prefill(attention, &call, kernels.device()),
            Method::Decode => Plan::decode(attention, &call, kernels.device()),
        }
    }

    /// The bytes of a workspace for this very call, wherever it begins.
    #[cfg(feature = "candle-cuda")]
    pub(crate) fn workspace_bytes(
        &self,
        method: Method,
        kernels: &Kernels,
        attention: &Attention,
        out: Layout,
    ) -> Result<usize> {
        let plan = self.plan(method, kernels, attention, out)?;
        Ok(at_any_alignment(plan.workspace_bytes()))
    }

    pub(super) fn check_buffers(&self, checks: &Checks<'_>) -> Result<()> {
        checks.buffer("q", self.q.buffer)?;
        for (argument, view) in [("k", &self.k), ("v", &self.v)] {
            checks.buffer(argument, view.buffer)?;
        }
        let sequences = &self.sequences;
        for (argument, array) in [
            ("cu_seqlens_q", sequences.cu_seqlens_q),
            ("cu_seqlens_k", sequences.cu_seqlens_k),
            ("block_table", sequences.block_table),
            ("seqused_k", sequences.seqused_k),
            ("leftpad_k", sequences.leftpad_k),
            ("offset", sequences.offset),
        ] {
            checks.some(argument, array)?;
        }
        checks.some("centres", sequences.radii.map(|radii| radii.centres))?;
        checks.some("radii", sequences.radii.map(|radii| radii.radii))
    }
}

/// Bytes that hold so many from the first aligned one on, wherever they begin. No buffer is empty.
pub(super) fn at_any_alignment(bytes: u64) -> usize {
    usize::try_from(bytes.saturating_add(ALIGNMENT - 1)).unwrap_or(usize::MAX)
}

/// [`Layer::forward`](super::Layer::forward) by one method, with slopes wherever they are.
pub(crate) fn attend<Q: Element, KV: CacheElement<Q>>(
    kernels: &Kernels,
    attention: &Attention,
    stream: &CudaStream,
    call: Call<'_, Q, KV>,
) -> Result<()> {
    let Call {
        method,
        slopes,
        inputs,
        out,
        lse,
        workspace,
        report,
    } = call;
    let launcher = kernels.on(stream)?;
    let plan = inputs.plan(method, kernels, attention, out.layout)?;
    let checks = Checks::new(stream)?;
    let found = match slopes {
        Slopes::Uploaded(slopes) => {
            checks.memory("slopes", slopes.memory())?;
            slopes.len()
        }
        Slopes::Buffer(slopes) => {
            checks.buffer("slopes", slopes)?;
            slopes.len()
        }
    };
    let count = attention.slopes().as_slice().len();
    if found < count {
        return Err(length("slopes", found, format!("at least {count}")));
    }
    inputs.check_buffers(&checks)?;
    checks.buffer("out", &*out.buffer)?;
    if let Some(lse) = &lse {
        check_lse(attention, &inputs.q.layout, lse.len())?;
        checks.buffer("lse", &**lse)?;
    }
    if let Some(report) = &report {
        let expected = 2 * attention.heads_q();
        if report.len() != expected {
            let expected = format!("2 * heads_q = {expected}");
            return Err(length("report", report.len(), expected));
        }
        checks.buffer("report", &**report)?;
    }
    checks.buffer("workspace", &*workspace)?;
    let room = workspace.len();
    if plan.launches().is_empty() {
        return Ok(());
    }

    let mut lent = Lent::new(stream);
    let sequences = &inputs.sequences;
    let start = lent.write("workspace", workspace);
    let aligned = start.next_multiple_of(ALIGNMENT);
    let needed = plan.workspace_bytes();
    if needed > 0 && needed.saturating_add(aligned - start) > room as u64 {
        let expected = at_any_alignment(needed);
        return Err(length("workspace", room, format!("at least {expected}")));
    }
    let addresses = Addresses {
        q: lent.read("q", inputs.q.buffer),
        k: lent.read("k", inputs.k.buffer),
        v: lent.read("v", inputs.v.buffer),
        out: lent.write("out", out.buffer),
        lse: lse.map_or(0, |lse| lent.write("lse", lse)),
        slopes: match slopes {
            Slopes::Uploaded(slopes) => slopes.memory().start,
            Slopes::Buffer(slopes) => lent.read("slopes", slopes),
        },
        cu_seqlens_q: lent.read_some("cu_seqlens_q", sequences.cu_seqlens_q),
        cu_seqlens_k: lent.read_some("cu_seqlens_k", sequences.cu_seqlens_k),
        seqused_k: lent.read_some("seqused_k", sequences.seqused_k),
        leftpad_k: lent.read_some("leftpad_k", sequences.leftpad_k),
        offset: lent.read_some("offset", sequences.offset),
        block_table: lent.read_some("block_table", sequences.block_table),
        centres: lent.read_some("centres", sequences.radii.map(|radii| radii.centres)),
        radii: lent.read_some("radii", sequences.radii.map(|radii| radii.radii)),
        report: report.map_or(0, |report| lent.write("report", report)),
        workspace: aligned,
    };
    lent.ready()?;
    // SAFETY: views are as long as their layouts need, the description of the sequences and the lines above have checked the
    // rest. `lent` orders the work before anything that frees or writes the buffers, and uploaded slopes stay until no work reads
    // them.
    unsafe { plan.run(&launcher, &addresses) }
}

pub(super) fn length(argument: &'static str, found: usize, expected: String) -> Error {
    Error::Argument(error::Error::Length {
        argument,
        found,
        expected,
    })
}
