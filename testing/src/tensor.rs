//! Tensors of a case, in buffers of their own and full of poison wherever nothing was written.

use flash_alibi::cpu::Element;
use flash_alibi::{View, ViewMut};

use crate::case::{Case, Memory};
use crate::normal;

/// A tensor in a buffer of its own.
#[derive(Debug, Clone)]
pub struct Tensor<T> {
    /// The whole buffer.
    pub data: Vec<T>,
    /// `[batch, rows, heads, head_dim]`; batch is 1 when packed.
    pub shape: [usize; 4],
    pub(crate) strides: [usize; 3],
    pub(crate) offset: usize,
    pub(crate) packed: bool,
}

impl<T: Element> Tensor<T> {
    /// A tensor full of poison.
    pub(crate) fn new(shape: [usize; 4], packed: bool, memory: Memory) -> Self {
        const ORDERS: [[usize; 3]; 6] = [
            [0, 1, 2],
            [0, 2, 1],
            [1, 0, 2],
            [1, 2, 0],
            [2, 0, 1],
            [2, 1, 0],
        ];
        let mut strides = [0; 3];
        let mut within = shape[3];
        for dim in ORDERS[memory.order].into_iter().rev() {
            let used_as_zero = packed && dim == 0;
            if !memory.broadcast[dim] && !used_as_zero {
                strides[dim] = within + memory.gaps[dim];
                within = strides[dim] * shape[dim].max(1);
            }
        }
        let poison = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY].map(T::from_f32);
        let len = memory.offset + within + 5;
        Self {
            data: (0..len).map(|i| poison[i % 3]).collect(),
            shape,
            strides,
            offset: memory.offset,
            packed,
        }
    }

    /// A tensor of the same layout whose buffer is full of `value`.
    pub fn like(&self, value: T) -> Self {
        Self {
            data: vec![value; self.data.len()],
            ..self.clone()
        }
    }

    /// Where a head's row starts in the buffer.
    pub fn at(&self, index: [usize; 3]) -> usize {
        let steps: usize = index
            .iter()
            .zip(self.strides)
            .map(|(i, stride)| i * stride)
            .sum();
        self.offset + steps
    }

    pub(crate) fn write(&mut self, index: [usize; 3], values: &[T]) {
        let at = self.at(index);
        self.data[at..][..values.len()].copy_from_slice(values);
    }

    /// The values of a head's row; the same for all indices that share memory.
    pub(crate) fn values(
        &self,
        case: &Case,
        tag: u64,
        index: [usize; 3],
        amplitude: f32,
    ) -> Vec<T> {
        let [b, row, head] = [0, 1, 2].map(|dim| match self.strides[dim] {
            0 => 0,
            _ => index[dim],
        });
        normal(case.seed, tag, [b, row, head, 0])
            .map(|x| T::from_f32(x * amplitude))
            .take(self.shape[3])
            .collect()
    }

    pub(crate) fn shape_and_strides(&self) -> (Vec<usize>, Vec<usize>) {
        let mut strides = self.strides.to_vec();
        strides.push(1);
        let skip = usize::from(self.packed);
        (self.shape[skip..].to_vec(), strides[skip..].to_vec())
    }

    /// The tensor as the crate reads it.
    pub fn view(&self) -> View<'_, T> {
        let (shape, strides) = self.shape_and_strides();
        View::strided(&self.data[self.offset..], &shape, &strides).expect("the buffer fits")
    }

    /// The tensor as the crate writes it.
    pub fn view_mut(&mut self) -> ViewMut<'_, T> {
        let (shape, strides) = self.shape_and_strides();
        ViewMut::strided(&mut self.data[self.offset..], &shape, &strides).expect("the buffer fits")
    }
}

pub(crate) fn bits<T: Element>(data: &[T]) -> Vec<u32> {
    data.iter().map(|x| x.to_f32().to_bits()).collect()
}
