//! How many blocks and clusters a device holds.

use super::api;
use crate::code::{Code, Result};
use crate::ffi::{Host, Out};
use crate::launch::Config;
use crate::settings::SETTINGS;
use crate::state::{Handle, with};

fn blocks(count: Out<i32>, function: Handle, threads: i32, shared_bytes: usize) -> Result {
    with(|state, _| {
        let function = state.functions.get(&function).ok_or(Code::INVALID_HANDLE)?;
        match u32::try_from(threads) {
            Ok(threads @ 1..) => count.set(function.occupancy(threads, shared_bytes)),
            _ => Err(Code::INVALID_VALUE),
        }
    })
}

api! {
    fn cuOccupancyMaxActiveBlocksPerMultiprocessor(count: Out<i32>, function: Handle, block: i32, shared_bytes: usize) {
        blocks(count, function, block, shared_bytes)
    }

    fn cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(
        count: Out<i32>,
        function: Handle,
        block: i32,
        shared_bytes: usize,
        _flags: u32,
    ) {
        blocks(count, function, block, shared_bytes)
    }

    fn cuOccupancyAvailableDynamicSMemPerBlock(bytes: Out<usize>, function: Handle, blocks: i32, block: i32) {
        with(|state, _| {
            let device = &SETTINGS.device;
            let function = state.functions.get(&function).ok_or(Code::INVALID_HANDLE)?;
            let threads = u32::try_from(block).map_err(|_| Code::INVALID_VALUE)?;
            let by_threads = function.occupancy(threads.max(1), 0);
            if threads == 0 || !(1..=by_threads).contains(&blocks) {
                return Err(Code::INVALID_VALUE);
            }
            let block = device.shared_processor() / blocks - device.shared_reserved();
            let block = block.min(device.shared_optin()) / 128 * 128;
            bytes.set(block.saturating_sub(function.info.static_shared as i32).max(0) as usize)
        })
    }

    fn cuOccupancyMaxActiveClusters(clusters: Out<i32>, function: Handle, config: Host) {
        // SAFETY: the caller has a configuration there.
        let (config, attributes) = unsafe { Config::read(config) }?;
        with(|state, _| {
            let function = state.functions.get(&function).ok_or(Code::INVALID_HANDLE)?;
            let threads = config.shape.block.into_iter().try_fold(1u32, u32::checked_mul);
            let threads = threads.filter(|&threads| threads > 0).ok_or(Code::INVALID_VALUE)?;
            if attributes.cluster.is_none() && function.cluster == [0; 3] {
                return Err(Code::INVALID_VALUE);
            }
            let cluster = function.cluster(config.shape.grid, attributes.cluster)?;
            let blocks = function.occupancy(threads, config.shared_bytes as usize);
            clusters.set(blocks * SETTINGS.device.processors / cluster as i32)
        })
    }

    fn cuOccupancyMaxPotentialClusterSize(size: Out<i32>, function: Handle, config: Host) {
        // SAFETY: the caller has a configuration there.
        unsafe { Config::read(config) }?;
        with(|state, _| {
            let function = state.functions.get(&function).ok_or(Code::INVALID_HANDLE)?;
            size.set(match function.cluster {
                [0, 0, 0] => function.largest_cluster() as i32,
                cluster => cluster.into_iter().product(),
            })
        })
    }
}
