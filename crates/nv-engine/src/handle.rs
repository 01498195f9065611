//! An engine on a thread of its own, for those who can't wait for steps: servers, and many callers at once.
//!
//! Requests go in by one channel, and outputs come back by one a request, all of them bounded. They are tokio's, without its
//! runtime: of the well-kept channels they can be waited for in async code and by threads alike. Nobody who is slow
//! holds the engine up: a request's channel has room for all that the request can put out.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::mpsc as std_mpsc;
use std::thread::{self, JoinHandle};

use tokio::sync::mpsc::error::{TryRecvError, TrySendError};
use tokio::sync::{Semaphore, mpsc, oneshot};

use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::model::Model;
use crate::request::{Gathered, Generation, Request, RequestId, RequestOutput};
use crate::stats::EngineStats;

/// Messages on their way to the engine at most; it takes all of them between two steps.
const MAX_NUM_COMMANDS: usize = 256;

/// The way to an engine that runs on its own thread. Clones lead to the same engine.
///
/// When all handles are gone the engine serves what it has to the end, then its thread ends.
///
/// ```
/// use nv_engine::{Engine, EngineHandle, Request};
///
/// # fn example(engine: Engine, request: Request) -> nv_engine::Result<()> {
/// let (handle, thread) = EngineHandle::spawn(engine)?;
/// let mut stream = handle.blocking_add_request(request)?;
/// while let Some(output) = stream.blocking_next() {
///     println!("{:?}", output.token_ids);
/// }
/// handle.blocking_shut_down();
/// thread.join().expect("the engine does not panic");
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct EngineHandle {
    commands: mpsc::Sender<Command>,
}

/// What is new of one request, as it comes. Dropped, it aborts the request.
#[derive(Debug)]
pub struct RequestStream {
    id: RequestId,
    outputs: mpsc::Receiver<RequestOutput>,
    /// The continuations that have not ended, and whether a token of them has come.
    unfinished: BTreeMap<usize, bool>,
    aborts: std_mpsc::Sender<Abort>,
}

/// What is to end: a request, or one of its continuations.
type Abort = (RequestId, Option<usize>);

#[derive(Debug)]
enum Command {
    Add(Box<Request>, oneshot::Sender<Result<RequestStream>>),
    AddAll(Vec<Request>, oneshot::Sender<Result<Vec<RequestStream>>>),
    Stats(oneshot::Sender<EngineStats>),
    /// To take no more requests; the answer comes when all have ended.
    ShutDown(oneshot::Sender<()>),
}

impl EngineHandle {
    /// Starts a thread that runs `engine` as long as there is anything to do, and sleeps else.
    ///
    /// # Errors
    /// [`Error::Spawn`] if the system refuses a thread.
    pub fn spawn<M: Model + Send + 'static>(
        engine: Engine<M>,
    ) -> Result<(Self, JoinHandle<Engine<M>>)> {
        let (commands, receiver) = mpsc::channel(MAX_NUM_COMMANDS);
        let (aborts, aborted) = std_mpsc::channel();
        let thread = Thread {
            engine,
            commands: receiver,
            aborts,
            aborted,
            streams: BTreeMap::new(),
            is_closed: false,
            shut_down: Vec::new(),
        };
        let builder = thread::Builder::new().name("nv-engine".to_owned());
        let thread = builder
            .spawn(move || thread.run())
            .map_err(|error| Error::Spawn { kind: error.kind() })?;
        Ok((Self { commands }, thread))
    }

    /// Hands a request to the engine; waits until the step under way is done.
    ///
    /// # Errors
    /// As [`Engine::add_request`]; [`Error::Stopped`] if the engine takes no more.
    pub async fn add_request(&self, request: Request) -> Result<RequestStream> {
        let (reply, answer) = oneshot::channel();
        self.send(Command::Add(Box::new(request), reply)).await?;
        answer.await.unwrap_or(Err(Error::Stopped))
    }

    /// Hands requests to the engine, all or none, so that no step comes between them. The streams have their order.
    ///
    /// # Errors
    /// As [`Self::add_request`], of the first that is refused.
    pub async fn add_requests(&self, requests: Vec<Request>) -> Result<Vec<RequestStream>> {
        let (reply, answer) = oneshot::channel();
        self.send(Command::AddAll(requests, reply)).await?;
        answer.await.unwrap_or(Err(Error::Stopped))
    }

    /// As [`Self::add_request`], for threads that may block.
    ///
    /// # Errors
    /// As [`Self::add_request`].
    ///
    /// # Panics
    /// In async code.
    pub fn blocking_add_request(&self, request: Request) -> Result<RequestStream> {
        let (reply, answer) = oneshot::channel();
        self.blocking_send(Command::Add(Box::new(request), reply))?;
        answer.blocking_recv().unwrap_or(Err(Error::Stopped))
    }

    /// Serves a request to its end. Who waits no longer, dropping the future, aborts it.
    ///
    /// # Errors
    /// As [`Self::add_request`]; what the request ended with, if it failed.
    pub async fn generate(&self, request: Request) -> Result<Generation> {
        let n = request.params.n();
        let mut stream = self.add_request(request).await?;
        let mut gathered = Gathered::new(stream.id, n);
        while let Some(output) = stream.next().await {
            gathered.push(output);
        }
        gathered.finish()
    }

    /// As [`Self::generate`], for threads that may block.
    ///
    /// # Errors
    /// As [`Self::generate`].
    ///
    /// # Panics
    /// In async code.
    pub fn blocking_generate(&self, request: Request) -> Result<Generation> {
        let n = request.params.n();
        let mut stream = self.blocking_add_request(request)?;
        let mut gathered = Gathered::new(stream.id, n);
        while let Some(output) = stream.blocking_next() {
            gathered.push(output);
        }
        gathered.finish()
    }

    /// Counts and state, between two steps.
    ///
    /// # Errors
    /// [`Error::Stopped`] if the engine's thread has ended.
    pub async fn stats(&self) -> Result<EngineStats> {
        let (reply, answer) = oneshot::channel();
        self.send(Command::Stats(reply)).await?;
        answer.await.map_err(|_| Error::Stopped)
    }

    /// As [`Self::stats`], for threads that may block.
    ///
    /// # Errors
    /// As [`Self::stats`].
    ///
    /// # Panics
    /// In async code.
    pub fn blocking_stats(&self) -> Result<EngineStats> {
        let (reply, answer) = oneshot::channel();
        self.blocking_send(Command::Stats(reply))?;
        answer.blocking_recv().map_err(|_| Error::Stopped)
    }

    /// Has the engine take no more requests, and waits until those that it has have ended; then its thread ends.
    pub async fn shut_down(&self) {
        let (reply, answer) = oneshot::channel();
        if self.send(Command::ShutDown(reply)).await.is_ok() {
            // An engine that has died has shut down too.
            let _ = answer.await;
        }
    }

    /// As [`Self::shut_down`], for threads that may block.
    ///
    /// # Panics
    /// In async code.
    pub fn blocking_shut_down(&self) {
        let (reply, answer) = oneshot::channel();
        if self.blocking_send(Command::ShutDown(reply)).is_ok() {
            let _ = answer.blocking_recv();
        }
    }

    async fn send(&self, command: Command) -> Result<()> {
        self.commands.send(command).await.map_err(|_| Error::Stopped)
    }

    fn blocking_send(&self, command: Command) -> Result<()> {
        self.commands.blocking_send(command).map_err(|_| Error::Stopped)
    }
}

impl RequestStream {
    /// The request.
    pub fn id(&self) -> RequestId {
        self.id
    }

    /// What is new; `None` once every continuation has ended.
    ///
    /// If the engine dies meanwhile, those that have not ended do so with [`Error::Stopped`].
    pub async fn next(&mut self) -> Option<RequestOutput> {
        loop {
            let output = self.outputs.recv().await;
            if let ControlFlow::Break(output) = self.received(output) {
                return output;
            }
        }
    }

    /// As [`Self::next`], for threads that may block.
    ///
    /// # Panics
    /// In async code.
    pub fn blocking_next(&mut self) -> Option<RequestOutput> {
        loop {
            let output = self.outputs.blocking_recv();
            if let ControlFlow::Break(output) = self.received(output) {
                return output;
            }
        }
    }

    /// Ends one continuation, of which a token has come, if its text is over for a reason that the engine doesn't know, and
    /// frees what it holds; the others go on. Returns whether there was one. No output of it comes after that.
    pub fn abort_continuation(&mut self, index: usize) -> bool {
        if self.unfinished.get(&index) != Some(&true) {
            return false;
        }
        self.unfinished.remove(&index);
        // An engine that is gone has nothing to abort.
        let _ = self.aborts.send((self.id, Some(index)));
        true
    }

    /// What is handed out of what has come, unless it is of a continuation that was aborted.
    fn received(&mut self, output: Option<RequestOutput>) -> ControlFlow<Option<RequestOutput>> {
        let Some(output) = output else {
            let stopped = self.unfinished.pop_first().map(|(index, _)| RequestOutput {
                finished: Some(Err(Error::Stopped)),
                ..RequestOutput::empty(self.id, index)
            });
            return ControlFlow::Break(stopped);
        };
        let Some(has_tokens) = self.unfinished.get_mut(&output.index) else {
            return ControlFlow::Continue(());
        };
        *has_tokens |= !output.token_ids.is_empty();
        if output.finished.is_some() {
            self.unfinished.remove(&output.index);
        }
        ControlFlow::Break(Some(output))
    }
}

impl Drop for RequestStream {
    fn drop(&mut self) {
        if !self.unfinished.is_empty() {
            // An engine that is gone has nothing to abort.
            let _ = self.aborts.send((self.id, None));
        }
    }
}

/// What runs on the engine's thread.
struct Thread<M> {
    engine: Engine<M>,
    commands: mpsc::Receiver<Command>,
    /// What streams are given to abort their requests by: never full, so that dropping one waits for nobody.
    aborts: std_mpsc::Sender<Abort>,
    aborted: std_mpsc::Receiver<Abort>,
    /// Where the outputs of requests go that have not ended, and how many of its continuations have not.
    streams: BTreeMap<RequestId, (mpsc::Sender<RequestOutput>, usize)>,
    /// Whether no more requests are taken.
    is_closed: bool,
    /// Who is told when the last request has ended.
    shut_down: Vec<oneshot::Sender<()>>,
}

impl<M: Model> Thread<M> {
    fn run(mut self) -> Engine<M> {
        loop {
            self.take_commands();
            while let Ok((id, index)) = self.aborted.try_recv() {
                self.abort(id, index);
            }
            if self.engine.has_unfinished_requests() {
                for output in self.engine.step() {
                    self.deliver(output);
                }
            } else if self.is_closed {
                break;
            }
        }
        for reply in self.shut_down {
            // Whoever asked need not have waited.
            let _ = reply.send(());
        }
        self.engine
    }

    /// Takes what has come; waits for something if there is nothing to do.
    fn take_commands(&mut self) {
        loop {
            let command = match self.commands.try_recv() {
                Ok(command) => Some(command),
                Err(TryRecvError::Disconnected) => None,
                Err(TryRecvError::Empty) => {
                    if self.engine.has_unfinished_requests() || self.is_closed {
                        return;
                    }
                    self.commands.blocking_recv()
                }
            };
            match command {
                // A stream that nobody waits for any more aborts its request as it is dropped.
                Some(Command::Add(request, reply)) => drop(reply.send(self.add(*request))),
                // Those before one that is refused are aborted likewise, before the next step.
                Some(Command::AddAll(requests, reply)) => {
                    let streams = requests.into_iter().map(|request| self.add(request));
                    drop(reply.send(streams.collect()));
                }
                Some(Command::Stats(reply)) => drop(reply.send(self.engine.stats())),
                Some(Command::ShutDown(reply)) => {
                    self.is_closed = true;
                    self.shut_down.push(reply);
                }
                None => {
                    self.is_closed = true;
                    return;
                }
            }
        }
    }

    fn add(&mut self, request: Request) -> Result<RequestStream> {
        if self.is_closed {
            return Err(Error::Stopped);
        }
        let (n, num_prompt_tokens) = (request.params.n(), request.prompt_token_ids.len());
        let id = self.engine.add_request(request)?;
        // An output has a token, or log-probabilities of the prompt, or an end.
        let max_num_tokens = self.engine.scheduler_config().max_model_len;
        let capacity = n * (max_num_tokens + 1) + num_prompt_tokens;
        let (sender, outputs) = mpsc::channel(capacity.min(Semaphore::MAX_PERMITS));
        self.streams.insert(id, (sender, n));
        let unfinished = (0..n).map(|index| (index, false)).collect();
        Ok(RequestStream { id, outputs, unfinished, aborts: self.aborts.clone() })
    }

    fn abort(&mut self, id: RequestId, index: Option<usize>) {
        let Some(index) = index else {
            self.engine.abort(id);
            self.streams.remove(&id);
            return;
        };
        // Else it has ended by itself meanwhile.
        if self.engine.abort_continuation(id, index) {
            self.end_continuation(id);
        }
    }

    fn deliver(&mut self, output: RequestOutput) {
        let (id, is_finished) = (output.request_id, output.finished.is_some());
        let Some((sender, _)) = self.streams.get(&id) else { return };
        // If the receiver is gone, its abort is on the way.
        if let Err(TrySendError::Full(_)) = sender.try_send(output) {
            unreachable!("there is room for all outputs");
        }
        if is_finished {
            self.end_continuation(id);
        }
    }

    /// Counts a continuation that has ended; the stream ends with the last.
    fn end_continuation(&mut self, id: RequestId) {
        if let Some((_, num_unfinished)) = self.streams.get_mut(&id) {
            *num_unfinished -= 1;
            if *num_unfinished == 0 {
                self.streams.remove(&id);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::iter;
    use std::sync::atomic::Ordering;

    use super::*;
    use crate::engine::tests::{
        FakeModel, PANICS, config, engine, engine_to_break, request, slow_engine,
    };
    use crate::{EngineConfig, FinishReason, TokenId};

    fn spawn(config: &EngineConfig) -> (EngineHandle, JoinHandle<Engine<FakeModel>>) {
        EngineHandle::spawn(engine(100, config)).unwrap()
    }

    /// The rest of a stream's only continuation.
    fn read_to_end(mut stream: RequestStream) -> Vec<TokenId> {
        let outputs = iter::from_fn(|| stream.blocking_next());
        outputs.flat_map(|output| output.token_ids).collect()
    }

    #[test]
    fn threads_are_served_together_as_if_alone() {
        let (handle, thread) = spawn(&config());
        let requests: Vec<Request> = (0..16).map(|i| request(i % 5, 9, 20)).collect();
        let expected = engine(100, &config()).generate(requests.clone());
        let callers = requests.into_iter().map(|request| {
            let handle = handle.clone();
            thread::spawn(move || handle.blocking_generate(request))
        });
        let callers: Vec<_> = callers.collect();
        for (caller, expected) in callers.into_iter().zip(expected) {
            let found = caller.join().unwrap().unwrap();
            let expected = expected.unwrap();
            assert_eq!(found.completions[0].token_ids, expected.completions[0].token_ids);
            assert_eq!(found.completions[0].finish_reason, FinishReason::Length);
        }
        assert_eq!(handle.blocking_stats().unwrap().num_finished, 16);
        drop(handle);
        let engine = thread.join().unwrap();
        assert_eq!(engine.stats().scheduler.num_used_blocks, 0);
    }

    #[test]
    fn async_code_waits_for_many_at_once_on_one_thread() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let (handle, thread) = spawn(&config());
        runtime.block_on(async {
            let callers: Vec<_> = (0..6)
                .map(|i| {
                    let handle = handle.clone();
                    tokio::spawn(async move { handle.generate(request(i, 9, 20)).await })
                })
                .collect();
            for caller in callers {
                let generation = caller.await.unwrap().unwrap();
                assert_eq!(generation.completions[0].token_ids.len(), 20);
            }
            assert_eq!(handle.stats().await.unwrap().num_finished, 6);
            handle.shut_down().await;
            assert!(matches!(handle.add_request(request(1, 9, 20)).await, Err(Error::Stopped)));
        });
        thread.join().unwrap();
    }

    #[test]
    fn a_request_is_whole_whichever_continuation_ends_first() {
        let (handle, thread) = spawn(&config());
        let mut several = request(1, 9, 40);
        several.params = several.params.with_n(4).unwrap().with_temperature(2.0).unwrap();
        several.params = several.params.with_stop_token_ids(vec![3, 7]).with_seed(3);
        let expected = engine(100, &config()).generate(vec![several.clone()]).pop().unwrap();
        let found = handle.blocking_generate(several).unwrap();
        let texts = |generation: Generation| -> Vec<Vec<TokenId>> {
            let completions = generation.completions.into_iter();
            completions.map(|completion| completion.token_ids).collect()
        };
        let (found, expected) = (texts(found), texts(expected.unwrap()));
        assert_eq!(found, expected);
        let lens: Vec<usize> = found.iter().map(Vec::len).collect();
        assert!(lens.len() == 4 && lens.is_sorted_by(|a, b| a < b), "{lens:?}");
        drop(handle);
        thread.join().unwrap();
    }

    #[test]
    fn requests_that_come_together_run_together_or_not_at_all() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let (handle, thread) = EngineHandle::spawn(slow_engine()).unwrap();
        runtime.block_on(async {
            let requests = (0..8).map(|i| request(i, 7, 1)).collect();
            let mut streams = handle.add_requests(requests).await.unwrap();
            assert!(streams.is_sorted_by_key(RequestStream::id));
            let first = streams[0].next().await.unwrap();
            assert_eq!(first.token_ids.len(), 1);
            // All fit into the first step.
            let stats = handle.stats().await.unwrap();
            assert_eq!((stats.num_requests, stats.num_finished), (8, 8));
            let requests = vec![request(1, 9, 20), request(2, 0, 20), request(3, 9, 20)];
            assert!(matches!(handle.add_requests(requests).await, Err(Error::EmptyPrompt)));
            let stats = handle.stats().await.unwrap();
            assert_eq!((stats.num_requests, stats.num_generated_tokens), (9, 8));
            handle.shut_down().await;
            assert!(matches!(handle.add_requests(Vec::new()).await, Err(Error::Stopped)));
        });
        assert_eq!(thread.join().unwrap().stats().num_aborted, 1);
    }

    #[test]
    fn a_stream_that_is_dropped_aborts_its_request() {
        let (handle, thread) = EngineHandle::spawn(slow_engine()).unwrap();
        let mut stream = handle.blocking_add_request(request(1, 9, 180)).unwrap();
        assert_eq!(stream.blocking_next().unwrap().token_ids.len(), 1);
        drop(stream);
        // One that waited to be read, and one that was read to its end, are not aborted.
        let slow = handle.blocking_add_request(request(2, 9, 180)).unwrap();
        handle.blocking_generate(request(3, 9, 20)).unwrap();
        handle.blocking_shut_down();
        assert_eq!(read_to_end(slow).len(), 180);
        let stats = thread.join().unwrap().stats();
        assert_eq!((stats.num_aborted, stats.num_finished), (1, 2));
        assert_eq!(stats.scheduler.num_used_blocks, 0);
    }

    #[test]
    fn a_continuation_that_is_aborted_frees_its_blocks_while_the_others_go_on() {
        let (handle, thread) = EngineHandle::spawn(slow_engine()).unwrap();
        let mut several = request(1, 9, 180);
        // Each says something else, in blocks of its own.
        several.params =
            several.params.with_n(3).unwrap().with_temperature(100.0).unwrap().with_seed(1);
        let mut stream = handle.blocking_add_request(several).unwrap();
        // Nothing to abort: no token of it has come, or there is none.
        assert!(!stream.abort_continuation(1) && !stream.abort_continuation(3));
        let mut num_tokens = [0; 3];
        while num_tokens.iter().any(|&num_tokens| num_tokens < 60) {
            let output = stream.blocking_next().unwrap();
            num_tokens[output.index] += output.token_ids.len();
        }
        let before = handle.blocking_stats().unwrap().scheduler;
        assert!(stream.abort_continuation(1) && stream.abort_continuation(2));
        assert!(!stream.abort_continuation(1));
        // The engine takes both before the step that follows.
        let after = loop {
            let stats = handle.blocking_stats().unwrap();
            if stats.num_aborted == 2 {
                break stats.scheduler;
            }
        };
        assert_eq!((before.num_running, after.num_running), (3, 1));
        assert!(after.num_used_blocks < before.num_used_blocks / 2);
        while let Some(output) = stream.blocking_next() {
            assert_eq!(output.index, 0);
            num_tokens[0] += output.token_ids.len();
        }
        assert_eq!(num_tokens[0], 180);
        // The last one that is aborted ends the request.
        let mut stream = handle.blocking_add_request(request(2, 9, 180)).unwrap();
        stream.blocking_next().unwrap();
        assert!(stream.abort_continuation(0));
        assert!(stream.blocking_next().is_none());
        handle.blocking_shut_down();
        let stats = thread.join().unwrap().stats();
        assert_eq!((stats.num_aborted, stats.num_finished), (3, 1));
        assert!(stats.num_generated_tokens < 180 + 3 * 90, "{}", stats.num_generated_tokens);
        assert_eq!(stats.scheduler.num_used_blocks, 0);
    }

    #[test]
    fn shutting_down_serves_what_there_is_and_takes_nothing_new() {
        let (handle, thread) = spawn(&EngineConfig { max_num_seqs: 1, ..config() });
        let streams: Vec<RequestStream> =
            (0..5).map(|i| handle.blocking_add_request(request(i, 9, 100)).unwrap()).collect();
        handle.blocking_shut_down();
        let refused = handle.blocking_add_request(request(1, 9, 20));
        assert!(matches!(refused, Err(Error::Stopped)));
        assert!(matches!(handle.blocking_stats(), Err(Error::Stopped)));
        for stream in streams {
            assert_eq!(read_to_end(stream).len(), 100);
        }
        thread.join().unwrap();
    }

    #[test]
    fn refusals_and_failures_reach_those_who_asked() {
        let (handle, thread) = spawn(&config());
        let refused = handle.blocking_add_request(request(1, 0, 20));
        assert!(matches!(refused, Err(Error::EmptyPrompt)));
        let bad = Request { prompt_token_ids: vec![PANICS], ..request(1, 9, 20) };
        let failed = handle.blocking_generate(bad);
        assert!(matches!(failed, Err(Error::Panic { .. })));
        handle.blocking_generate(request(1, 9, 20)).unwrap();
        drop(handle);
        thread.join().unwrap();
    }

    #[test]
    fn an_engine_that_dies_ends_what_it_had_with_an_error() {
        let (handle, thread) = EngineHandle::spawn(slow_engine()).unwrap();
        let mut several = request(1, 9, 180);
        several.params = several.params.with_n(2).unwrap();
        let mut stream = handle.blocking_add_request(several).unwrap();
        // As if the thread had gone: its end of the channel is closed.
        stream.outputs.close();
        while stream.outputs.try_recv().is_ok() {}
        for index in 0..2 {
            let output = stream.blocking_next().unwrap();
            assert_eq!(output.index, index);
            assert!(matches!(output.finished, Some(Err(Error::Stopped))));
        }
        assert!(stream.blocking_next().is_none());
        drop((stream, handle));
        thread.join().unwrap();
    }

    #[test]
    fn an_engine_whose_thread_panics_leaves_nobody_waiting() {
        let (engine, is_broken) = engine_to_break();
        let (handle, thread) = EngineHandle::spawn(engine).unwrap();
        let mut running = handle.blocking_add_request(request(1, 9, 180)).unwrap();
        running.blocking_next().unwrap();
        is_broken.store(true, Ordering::Relaxed);
        // Outside of any step, where nothing catches it.
        let refused = handle.blocking_add_request(request(2, 9, 20));
        assert!(matches!(refused, Err(Error::Stopped)), "{refused:?}");
        // A step may have come first, and then the model broke in it.
        let last = iter::from_fn(|| running.blocking_next()).last().unwrap();
        let Some(Err(error)) = last.finished else { panic!("{last:?}") };
        assert!(matches!(error, Error::Stopped | Error::Panic { .. }), "{error:?}");
        assert!(matches!(handle.blocking_stats(), Err(Error::Stopped)));
        handle.blocking_shut_down();
        assert!(thread.join().is_err());
    }
}
