//! Every argument of every function that launches.

use super::*;

/// All that calls take, each in a buffer of its own.
pub struct Buffers {
    pub q: CudaSlice<f16>,
    pub k: CudaSlice<f16>,
    pub v: CudaSlice<f16>,
    pub out: CudaSlice<f16>,
    pub lse: CudaSlice<f32>,
    pub other_lse: CudaSlice<f32>,
    pub cu_seqlens_q: CudaSlice<i32>,
    pub cu_seqlens_k: CudaSlice<i32>,
    pub block_table: CudaSlice<i32>,
    pub seqused_k: CudaSlice<i32>,
    pub leftpad_k: CudaSlice<i32>,
    pub offset: CudaSlice<i32>,
    pub centres: CudaSlice<f32>,
    pub radii: CudaSlice<f32>,
    pub report: CudaSlice<u64>,
    pub workspace: CudaSlice<u8>,
    pub slot_mapping: CudaSlice<i64>,
    pub copies: CudaSlice<i64>,
}

/// The arguments of each function that launches.
pub const ARGUMENTS: [(&str, &[&str]); 7] = [
    (
        "paged",
        &[
            "q",
            "k",
            "v",
            "out",
            "lse",
            "cu_seqlens_q",
            "block_table",
            "seqused_k",
            "leftpad_k",
            "offset",
            "centres",
            "radii",
            "report",
            "workspace",
        ],
    ),
    ("packed", &["q", "k", "v", "out", "cu_seqlens_k"]),
    (
        "append",
        &[
            "k",
            "v",
            "k_pages",
            "v_pages",
            "slot_mapping",
            "centres",
            "radii",
        ],
    ),
    ("copy", &["copies", "k_pages", "v_pages", "radii"]),
    (
        "append to one buffer",
        &["k", "v", "k_pages", "slot_mapping", "centres", "radii"],
    ),
    ("copy in one buffer", &["copies", "k_pages", "radii"]),
    ("merge", &["out", "lse", "other_out", "other_lse"]),
];

impl Buffers {
    pub fn new(stream: &Arc<CudaStream>) -> Self {
        let floats = |n: usize| stream.clone_htod(&vec![1f32; n]).unwrap();
        let integers = |values: &[i32]| stream.clone_htod(values).unwrap();
        let pages: Vec<i32> = (0..PAGES[0] as i32).collect();
        Self {
            q: ones(stream, KEYS),
            k: ones(stream, KEYS),
            v: ones(stream, KEYS),
            out: ones(stream, KEYS),
            lse: floats(HEADS * KEYS),
            other_lse: floats(HEADS * KEYS),
            cu_seqlens_q: integers(&[0, KEYS as i32]),
            cu_seqlens_k: integers(&[0, KEYS as i32]),
            block_table: integers(&pages),
            seqused_k: integers(&[KEYS as i32]),
            leftpad_k: integers(&[0]),
            offset: integers(&[0]),
            centres: floats(ROW),
            radii: floats(PAGES[0] * HEADS),
            report: stream.clone_htod(&[0; 2 * HEADS]).unwrap(),
            workspace: stream.alloc_zeros(1 << 20).unwrap(),
            slot_mapping: stream
                .clone_htod(&(0..KEYS as i64).collect::<Vec<_>>())
                .unwrap(),
            copies: stream.clone_htod(&[0, 1]).unwrap(),
        }
    }

    /// Calls a function with the buffers, and for one argument with that of others.
    pub fn call(
        &mut self,
        function: &str,
        wrong: &str,
        others: &mut Self,
        layer: &Layer,
        stream: &CudaStream,
    ) -> Result<()> {
        macro_rules! pick {
            ($argument:literal, $field:ident) => {
                match wrong == $argument {
                    true => &others.$field,
                    false => &self.$field,
                }
            };
            (mut $argument:literal, $field:ident) => {
                match wrong == $argument {
                    true => &mut others.$field,
                    false => &mut self.$field,
                }
            };
        }
        let packed = [KEYS, HEADS, HEAD_DIM];
        match function {
            "paged" => {
                let inputs = Inputs::paged(
                    View::new(pick!("q", q), &packed)?,
                    View::new(pick!("k", k), &PAGES)?,
                    View::new(pick!("v", v), &PAGES)?,
                    pick!("block_table", block_table),
                    pick!("seqused_k", seqused_k),
                )
                .varlen_q(pick!("cu_seqlens_q", cu_seqlens_q), KEYS)
                .leftpad_k(pick!("leftpad_k", leftpad_k))
                .offset(pick!("offset", offset))
                .radii(pick!("centres", centres), pick!("radii", radii));
                let out = ViewMut::new(pick!(mut "out", out), &packed)?;
                let lse = pick!(mut "lse", lse);
                let workspace = pick!(mut "workspace", workspace);
                let report = pick!(mut "report", report);
                layer.prefill_with_report(stream, &inputs, out, Some(lse), workspace, report)
            }
            "packed" => {
                let inputs = Inputs::new(
                    View::new(pick!("q", q), &packed)?,
                    View::new(pick!("k", k), &packed)?,
                    View::new(pick!("v", v), &packed)?,
                )
                .varlen(
                    &self.cu_seqlens_q,
                    pick!("cu_seqlens_k", cu_seqlens_k),
                    KEYS,
                    KEYS,
                );
                let out = ViewMut::new(pick!(mut "out", out), &packed)?;
                layer.forward(stream, &inputs, out, None, &mut self.workspace)
            }
            "append" => layer.append_with_radii(
                stream,
                View::new(pick!("k", q), &packed)?,
                View::new(pick!("v", out), &packed)?,
                ViewMut::new(pick!(mut "k_pages", k), &PAGES)?,
                ViewMut::new(pick!(mut "v_pages", v), &PAGES)?,
                pick!("slot_mapping", slot_mapping),
                pick!("centres", centres),
                pick!(mut "radii", radii),
            ),
            "copy" => layer.copy_pages(
                stream,
                pick!("copies", copies),
                ViewMut::new(pick!(mut "k_pages", k), &PAGES)?,
                ViewMut::new(pick!(mut "v_pages", v), &PAGES)?,
                Some(pick!(mut "radii", radii)),
            ),
            "append to one buffer" => {
                let radii = pick!(mut "radii", radii);
                one_buffer(pick!(mut "k_pages", k))?.append_with_radii(
                    layer,
                    stream,
                    View::new(pick!("k", q), &packed)?,
                    View::new(pick!("v", out), &packed)?,
                    pick!("slot_mapping", slot_mapping),
                    pick!("centres", centres),
                    &mut radii.slice_mut(..2 * HEADS),
                )
            }
            "copy in one buffer" => {
                let radii = pick!(mut "radii", radii);
                one_buffer(pick!(mut "k_pages", k))?.copy_pages(
                    layer,
                    stream,
                    pick!("copies", copies),
                    Some(&mut radii.slice_mut(..2 * HEADS)),
                )
            }
            "merge" => layer.merge_state(
                stream,
                ViewMut::new(pick!(mut "out", out), &packed)?,
                pick!(mut "lse", lse),
                View::new(pick!("other_out", q), &packed)?,
                pick!("other_lse", other_lse),
            ),
            _ => unreachable!("the functions are those of the table"),
        }
    }
}

/// Two pages of keys and two of values, by turns.
fn one_buffer(buffer: &mut CudaSlice<f16>) -> Result<Pools<'_, f16>> {
    let [_, page_size, heads, head_dim] = PAGES;
    let (shape, page) = ([2, page_size, heads, head_dim], page_size * ROW);
    let layout = Layout::new("pages", &shape, &[2 * page, ROW, head_dim, 1])?;
    Ok(Pools::of_one_buffer(buffer, (0, layout), (page, layout))?)
}

/// Every argument of every function, once wrong.
pub fn every_argument(
    here: &Arc<CudaStream>,
    there: &Arc<CudaStream>,
    layer: &Layer,
    check: impl Fn(&str, Error),
) {
    let (mut own, mut others) = (Buffers::new(here), Buffers::new(there));
    for (function, arguments) in ARGUMENTS {
        let right = own.call(function, "none", &mut others, layer, here);
        right.unwrap_or_else(|error| panic!("{function}: {error}"));
        for argument in arguments {
            let called = own.call(function, argument, &mut others, layer, here);
            check(argument, called.unwrap_err());
        }
    }
    here.synchronize().unwrap();
}
