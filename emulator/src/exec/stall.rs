//! Waits of a whole warp for other warps: for the issue of a tensor operation, for registers.

use super::block::Block;
use super::warp::Warp;
use super::wgmma::WARPS;

/// What a warp waits for. It goes on after the instruction.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Stall {
    /// The tensor operations before a number, of which other warps have not issued all.
    Tensor { until: u64 },
    /// As many registers for each thread.
    Registers { count: u32 },
}

impl Warp {
    /// Ends a stall whose reason is gone; whether the warp can run.
    pub(super) fn resume(&mut self, b: &mut Block<'_>) -> bool {
        let over = match self.stall {
            None => true,
            Some(Stall::Tensor { until }) => self.finish_operations(b, until),
            Some(Stall::Registers { count }) => self.take_registers(b, count),
        };
        if over {
            self.stall = None;
        }
        over
    }

    /// What a stalled warp waits for, for a report.
    pub(super) fn stall_text(&self, b: &Block<'_>, stall: Stall) -> String {
        match stall {
            Stall::Tensor { until } => {
                let group = self.id / WARPS;
                match b.groups[group].missing(self.tensor_done()..until) {
                    Some((who, issued)) => {
                        let absent: Vec<String> = (0..WARPS)
                            .filter(|w| issued >> w & 1 == 0)
                            .map(|w| (group * WARPS + w).to_string())
                            .collect();
                        format!(
                            "a tensor operation that warp {} of its warpgroup has not issued: the one at {}",
                            absent.join(" and "),
                            b.place_of(who)
                        )
                    }
                    None => "tensor operations".to_owned(),
                }
            }
            Stall::Registers { count } => b.pool_text(self.registers, count),
        }
    }
}
