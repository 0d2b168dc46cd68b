//! How many blocks and clusters a device holds.

use super::api;
use crate::code::{Code, Result};
use crate::device::MAX_THREADS;
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

/// Dynamic shared memory of a block of so many threads (`CUoccupancyB2DSize`).
type SharedBytes = unsafe extern "C" fn(threads: i32) -> usize;

/// The block with which most threads of a multiprocessor are busy, the largest of several, and the blocks that the device
/// then holds.
fn largest(
    blocks: Out<i32>,
    threads: Out<i32>,
    function: Handle,
    bytes_of: Option<SharedBytes>,
    bytes: usize,
    limit: i32,
) -> Result {
    let limit = match u32::try_from(limit).map_err(|_| Code::INVALID_VALUE)? {
        0 => MAX_THREADS,
        limit => limit.min(MAX_THREADS),
    };
    // Asked before the state is taken: it is the caller's function, which may call this library.
    let sizes = (32..=limit)
        .step_by(32)
        .chain((limit < 32).then_some(limit));
    let sizes: Vec<_> = sizes
        .map(|threads| {
            // SAFETY: the caller's function takes any number of threads of a block.
            let bytes = bytes_of.map_or(bytes, |bytes_of| unsafe { bytes_of(threads as i32) });
            (threads, bytes)
        })
        .collect();
    with(|state, _| {
        let function = state.functions.get(&function).ok_or(Code::INVALID_HANDLE)?;
        let busy = |&(size, bytes): &(u32, usize)| {
            let at_once = function.occupancy(size, bytes);
            (at_once * size as i32, size as i32, at_once)
        };
        let most = sizes.iter().map(busy).max().filter(|&(busy, ..)| busy > 0);
        let (_, size, at_once) = most.ok_or(Code::INVALID_VALUE)?;
        blocks.set(at_once * SETTINGS.device.processors)?;
        threads.set(size)
    })
}

api! {
    fn cuOccupancyMaxPotentialBlockSize(
        blocks: Out<i32>,
        threads: Out<i32>,
        function: Handle,
        bytes_of: Option<SharedBytes>,
        bytes: usize,
        limit: i32,
    ) {
        largest(blocks, threads, function, bytes_of, bytes, limit)
    }

    fn cuOccupancyMaxPotentialBlockSizeWithFlags(
        blocks: Out<i32>,
        threads: Out<i32>,
        function: Handle,
        bytes_of: Option<SharedBytes>,
        bytes: usize,
        limit: i32,
        _flags: u32,
    ) {
        largest(blocks, threads, function, bytes_of, bytes, limit)
    }

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
