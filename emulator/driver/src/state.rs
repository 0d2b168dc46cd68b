//! All contexts and what belongs to them. Handles are numbers that look like addresses; none is used twice.

use std::alloc::Layout;
use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};

use ptx_emulator::{DevicePtr, KernelInfo, Memory, Module};

use crate::capture::{Capture, Joined};
use crate::code::{Code, Result};
use crate::device::SHARED_BYTES;
use crate::settings::SETTINGS;
use crate::work::{Event, Queue, Work};

/// A context, stream, event, module, function, graph or executable graph.
pub type Handle = usize;

/// Everything.
#[derive(Default)]
pub struct State {
    last_handle: Handle,
    /// Of the schedule.
    pub random: u64,
    /// The primary context and how often it is retained.
    primary: (Handle, u32),
    pub contexts: HashMap<Handle, Context>,
    pub modules: HashMap<Handle, LoadedModule>,
    pub functions: HashMap<Handle, Function>,
    pub streams: BTreeMap<Handle, Stream>,
    pub events: HashMap<Handle, Event>,
    pub graphs: HashMap<Handle, Vec<Work>>,
    pub executables: HashMap<Handle, Executable>,
    /// By number.
    pub captures: BTreeMap<u64, Capture>,
    /// The streams that will pass what events recorded, by number.
    pub recorded: HashMap<u64, Handle>,
    pub memory: Memory,
    /// Device memory by address.
    allocations: HashMap<u64, Allocation>,
    used: u64,
    /// Pinned memory of the host by address.
    pub pinned: BTreeMap<usize, Layout>,
}

/// A context.
pub struct Context {
    /// What has failed in it: it stays so.
    pub error: Option<Code>,
    /// Its stream without a handle.
    pub legacy: Handle,
}

/// A module in a context.
pub struct LoadedModule {
    pub context: Handle,
    pub code: Arc<Module>,
    /// What its PTX is for: 80 for `sm_80`.
    pub architecture: u32,
}

/// A kernel in a context.
pub struct Function {
    pub context: Handle,
    pub module: Handle,
    pub code: Arc<Module>,
    pub info: KernelInfo,
    /// What its PTX is for.
    pub architecture: u32,
    /// Bytes of dynamic shared memory that a launch may ask for.
    pub max_dynamic: i32,
    /// Blocks of the clusters that it is to be launched in; zeros if it does not matter.
    pub cluster: [i32; 3],
    /// It may be launched in clusters of a size that not every device has.
    pub non_portable_cluster: bool,
}

/// A stream.
pub struct Stream {
    pub context: Handle,
    /// It waits for the legacy stream and the other way round.
    pub blocking: bool,
    /// It has no handle of its own.
    pub legacy: bool,
    /// Its handle is given up, while its work goes on.
    pub destroyed: bool,
    pub queue: Queue,
    /// The capture that it takes part in.
    pub joined: Option<Joined>,
}

/// A graph that can be launched.
pub struct Executable {
    pub nodes: Vec<Work>,
    /// Where it was last launched.
    pub stream: Handle,
}

/// Device memory that a program has allocated.
struct Allocation {
    context: Handle,
    /// What it takes of the device's memory.
    bytes: u64,
    /// Its release is enqueued.
    going: bool,
    /// It was allocated in stream order.
    in_order: bool,
}

static INITIALISED: AtomicBool = AtomicBool::new(false);
static STATE: LazyLock<Mutex<State>> = LazyLock::new(Mutex::default);

thread_local! {
    /// The contexts that the thread has made current, the last on top.
    static CURRENT: RefCell<Vec<Handle>> = const { RefCell::new(Vec::new()) };
}

/// Makes the others work.
pub fn initialise() -> Result {
    if SETTINGS.devices == 0 {
        return Err(Code::NO_DEVICE);
    }
    INITIALISED.store(true, Ordering::Relaxed);
    Ok(())
}

/// The state, for calls that need no context.
pub fn state() -> Result<MutexGuard<'static, State>> {
    if !INITIALISED.load(Ordering::Relaxed) {
        return Err(Code::NOT_INITIALIZED);
    }
    Ok(STATE.lock().unwrap_or_else(PoisonError::into_inner))
}

/// Calls a function with the state and the current context, in which nothing must have failed before.
pub fn with<T>(body: impl FnOnce(&mut State, Handle) -> Result<T>) -> Result<T> {
    let mut state = state()?;
    let context = current().ok_or(Code::INVALID_CONTEXT)?;
    state.check(context)?;
    body(&mut state, context)
}

/// The current context.
pub fn current() -> Option<Handle> {
    CURRENT.with_borrow(|stack| stack.last().copied())
}

/// Puts a context in place of the current one.
pub fn set_current(context: Option<Handle>) {
    CURRENT.with_borrow_mut(|stack| {
        stack.pop();
        stack.extend(context);
    });
}

/// Puts a context upon the current one.
pub fn push_current(context: Handle) {
    CURRENT.with_borrow_mut(|stack| stack.push(context));
}

/// Takes the current context off.
pub fn pop_current() -> Option<Handle> {
    CURRENT.with_borrow_mut(Vec::pop)
}

impl State {
    /// A handle that was not used before.
    pub fn new_handle(&mut self) -> Handle {
        self.last_handle += 16;
        0x7000_0000_0000 + self.last_handle
    }

    /// What has failed in a context.
    pub fn check(&self, context: Handle) -> Result {
        let context = self.contexts.get(&context);
        match context.ok_or(Code::CONTEXT_IS_DESTROYED)?.error {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    /// Adds a context.
    pub fn new_context(&mut self) -> Handle {
        let context = self.new_handle();
        self.add_context(context);
        context
    }

    fn add_context(&mut self, context: Handle) {
        let legacy = self.new_stream(context, true, true);
        let error = None;
        self.contexts.insert(context, Context { error, legacy });
    }

    /// Adds a stream.
    pub fn new_stream(&mut self, context: Handle, blocking: bool, legacy: bool) -> Handle {
        let handle = self.new_handle();
        let stream = Stream {
            context,
            blocking,
            legacy,
            destroyed: false,
            queue: Queue::default(),
            joined: None,
        };
        self.streams.insert(handle, stream);
        handle
    }

    /// The primary context, made unless it is there. It has the same handle each time.
    pub fn retain_primary(&mut self) -> Handle {
        if self.primary.0 == 0 {
            self.primary.0 = self.new_handle();
        }
        if self.primary.1 == 0 {
            self.add_context(self.primary.0);
        }
        self.primary.1 += 1;
        self.primary.0
    }

    /// The opposite of [`Self::retain_primary`].
    pub fn release_primary(&mut self) -> Result {
        let (context, count) = self.primary;
        self.primary.1 = count.checked_sub(1).ok_or(Code::INVALID_CONTEXT)?;
        if self.primary.1 == 0 {
            self.destroy_context(context)?;
        }
        Ok(())
    }

    /// How often the primary context is retained.
    pub fn primary_count(&self) -> u32 {
        self.primary.1
    }

    /// Ends a context's work and releases all that it has.
    pub fn destroy_context(&mut self, context: Handle) -> Result {
        if !self.contexts.contains_key(&context) {
            return Err(Code::INVALID_CONTEXT);
        }
        self.drain_context(context);
        self.contexts.remove(&context);
        self.streams.retain(|_, stream| stream.context != context);
        self.events.retain(|_, event| event.context != context);
        self.modules.retain(|_, module| module.context != context);
        self.functions
            .retain(|_, function| function.context != context);
        self.captures
            .retain(|_, capture| capture.context != context);
        let all = self.allocations.iter();
        let owned = all.filter(|(_, allocation)| allocation.context == context);
        for address in owned.map(|(&address, _)| address).collect::<Vec<_>>() {
            self.release(address);
        }
        Ok(())
    }

    /// The stream that a caller means: 0 and 1 are the legacy stream, and 2, a thread's own, is taken as that too.
    pub fn stream(&self, context: Handle, handle: Handle) -> Result<Handle> {
        match handle {
            0..=2 => Ok(self.contexts[&context].legacy),
            _ => match self.streams.get(&handle) {
                Some(stream) if !stream.destroyed => Ok(handle),
                _ => Err(Code::INVALID_HANDLE),
            },
        }
    }

    /// Free and all device memory.
    pub fn free_and_total(&self) -> (usize, usize) {
        let total = SETTINGS.memory;
        (total.saturating_sub(self.used) as usize, total as usize)
    }

    /// Allocates device memory, which holds nothing yet.
    pub fn allocate(&mut self, context: Handle, len: usize, in_order: bool) -> Result<u64> {
        let bytes = (len as u64).checked_next_multiple_of(512);
        let fits = |state: &Self| {
            let used = bytes.and_then(|bytes| state.used.checked_add(bytes));
            used.filter(|&used| used <= SETTINGS.memory)
        };
        if fits(self).is_none() {
            // Releases may be under way.
            self.drain_context(context);
            self.check(context)?;
        }
        let used = fits(self).ok_or(Code::OUT_OF_MEMORY)?;
        let allocated = self.memory.alloc(len as u64);
        let DevicePtr(address) = allocated.map_err(|_| Code::OUT_OF_MEMORY)?;
        let allocation = Allocation {
            context,
            bytes: used - self.used,
            going: false,
            in_order,
        };
        self.allocations.insert(address, allocation);
        self.used = used;
        Ok(address)
    }

    /// Notes that an allocation will be released. Whether it was allocated in stream order.
    pub fn begin_release(&mut self, address: u64) -> Result<bool> {
        match self.allocations.get_mut(&address) {
            Some(allocation) if !allocation.going => {
                allocation.going = true;
                Ok(allocation.in_order)
            }
            _ => Err(Code::INVALID_VALUE),
        }
    }

    /// Releases an allocation.
    pub fn release(&mut self, address: u64) {
        if let Some(allocation) = self.allocations.remove(&address) {
            self.used -= allocation.bytes;
            let released = self.memory.free(DevicePtr(address));
            released.expect("an allocation is released once");
        }
    }

    /// Whether all bytes are of one allocation or variable.
    pub fn check_device(&self, address: u64, len: usize) -> Result {
        let end = address.checked_add(len as u64).ok_or(Code::INVALID_VALUE)?;
        let valid = |address| self.memory.read(DevicePtr(address), &mut []).is_ok();
        match len == 0 || valid(address) && valid(end) {
            true => Ok(()),
            false => Err(Code::INVALID_VALUE),
        }
    }

    /// The function of that name in a module.
    pub fn function(&mut self, module: Handle, name: &str) -> Result<Handle> {
        let mut found = self.functions.iter();
        let same = |function: &Function| function.module == module && function.info.name == name;
        if let Some((&handle, _)) = found.find(|(_, function)| same(function)) {
            return Ok(handle);
        }
        let loaded = self.modules.get(&module).ok_or(Code::INVALID_HANDLE)?;
        let (context, architecture) = (loaded.context, loaded.architecture);
        let code = loaded.code.clone();
        let info = code.kernel(name).ok_or(Code::NOT_FOUND)?.clone();
        if let Err(fault) = code.check(name) {
            eprintln!("ptx-emulator-driver: {fault}");
            return Err(Code::NOT_SUPPORTED);
        }
        let handle = self.new_handle();
        let function = Function {
            context,
            module,
            code,
            architecture,
            max_dynamic: SHARED_BYTES - info.static_shared as i32,
            cluster: [0; 3],
            non_portable_cluster: false,
            info,
        };
        self.functions.insert(handle, function);
        Ok(handle)
    }

    /// Unloads a module. What was launched and is not done fails.
    pub fn unload(&mut self, module: Handle) -> Result {
        self.modules.remove(&module).ok_or(Code::INVALID_HANDLE)?;
        self.functions
            .retain(|_, function| function.module != module);
        Ok(())
    }
}
