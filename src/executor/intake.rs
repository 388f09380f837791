//! Fetches on credit and admits: from a broker's delivery to a charged attempt.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use rand::RngExt;
use serde_json::Value;
use tokio::sync::OwnedSemaphorePermit;

use super::admission::{Meeting, Verdict, judge};
use super::keeper::Hold;
use super::resources::lacking;
use super::{Context, SourceRuntime, deferred, settle, spool, stager};
use crate::broker::message::Delivery;
use crate::broker::{Presence, Settled, Settlement};
use crate::cancel::{CancelReason, CancelScope};
use crate::config::types::Rule;
use crate::error::TaskError;
use crate::events::Reporter;
use crate::failpoint::{self, Moment};
use crate::handler::{Admit, Attempt, Demand, Handler, Remains, Spool, outstanding};
use crate::ledger::{Live, LivePhase};
use crate::lifecycle::LifePhase;
use crate::store::{Expected, Put, Record, Revision, StoreError, Versioned};
use crate::task::{
    Arg, ContentType, DecodeError, Decoded, Fence, Task, UnknownTask, celery, envelope, message,
};

/// A charged attempt on its way: everything that settlement needs.
pub(super) struct Charge {
    pub(super) attempt: Attempt,
    pub(super) hold: Hold,
    pub(super) record: Record,
    pub(super) revision: Revision,
    pub(super) source: Arc<SourceRuntime>,
}

/// Longest pause between two tries of a broker or store that does not answer.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// Fetches from `source`, never more than there is room for, until the worker drains, and not while it is paused.
pub(super) async fn fetch(context: Arc<Context>, source: Arc<SourceRuntime>, share: usize) {
    let mut pause = Pause::default();
    let lifecycle = context.lifecycle.clone();
    // Members are awaited by the executor's end: an attempt is over when its future is.
    let roads = tokio_util::task::TaskTracker::new();
    loop {
        // Waited for at the top: a pause may come before the first fetch.
        tokio::select! {
            biased;
            () = lifecycle.reached(LifePhase::Draining) => break,
            () = lifecycle.running() => {}
        }
        let stop = CancelScope::new();
        let draining = async {
            lifecycle.reached(LifePhase::Paused).await;
            stop.cancel(CancelReason::Interrupted);
        };
        let fetching = async {
            while !stop.is_canceled() {
                fetch_once(&context, &source, share, &stop, (&mut pause, &roads)).await;
            }
        };
        tokio::join!(draining, fetching);
    }
    roads.close();
    roads.wait().await;
}

async fn fetch_once(
    context: &Arc<Context>,
    source: &Arc<SourceRuntime>,
    share: usize,
    stop: &CancelScope,
    (pause, roads): (&mut Pause, &tokio_util::task::TaskTracker),
) {
    let Some(mut room) = room(context, share, stop).await else { return };
    if !stager::disk_has_room(context, stop).await {
        return;
    }
    if pause.failed() {
        pause.wait(stop).await;
        if let Err(error) = context.store.load(&probe()).await {
            tracing::warn!(%error, "nothing is admitted while the store is away");
            return;
        }
    }
    match source.broker.source.fetch(room.num_permits(), stop).await {
        Ok(deliveries) => {
            pause.reset();
            for delivery in deliveries {
                let permit = room.split(1);
                let (context, source) = (context.clone(), source.clone());
                roads.spawn(async move { meet(context, source, delivery, permit).await });
            }
        }
        Err(error) => {
            pause.lengthen();
            tracing::warn!(%error, "nothing could be fetched");
        }
    }
}

/// An id that no task has: asking for it shows whether the store answers.
fn probe() -> crate::task::TaskId {
    crate::task::TaskId::new("longshore-probe").expect("invariant: a valid id")
}

/// Waits for room for one attempt, then takes as much as is there, at most `share`.
async fn room(context: &Context, share: usize, stop: &CancelScope) -> Option<OwnedSemaphorePermit> {
    let one = tokio::select! {
        permit = context.room.clone().acquire_owned() => permit.ok()?,
        _ = stop.canceled() => return None,
    };
    let mut room = one;
    let more = context.room.available_permits().min(share.saturating_sub(1));
    if let Ok(more) = context.room.clone().try_acquire_many_owned(u32::try_from(more).unwrap_or(0)) {
        room.merge(more);
    }
    Some(room)
}

/// The pause after failures in a row: it doubles up to a bound and jitters.
#[derive(Default)]
struct Pause {
    failures: u32,
}

impl Pause {
    fn failed(&self) -> bool {
        self.failures > 0
    }
    fn reset(&mut self) {
        self.failures = 0;
    }
    fn lengthen(&mut self) {
        self.failures = self.failures.saturating_add(1);
    }
    async fn wait(&self, stop: &CancelScope) {
        let longest =
            Duration::from_millis(100).saturating_mul(1 << self.failures.min(10)).min(LONGEST_PAUSE);
        let pause = longest.mul_f64(rand::rng().random_range(0.5..1.0));
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            _ = stop.canceled() => {}
        }
    }
}

/// Walks one delivery's whole way.
async fn meet(
    context: Arc<Context>,
    source: Arc<SourceRuntime>,
    delivery: Delivery,
    room: Option<OwnedSemaphorePermit>,
) {
    let task = match decode(&context, &delivery) {
        Ok(Decoded::Task(task)) => Arc::new(task),
        Ok(Decoded::Unknown(unknown)) => return pass_on(&context, delivery, &unknown).await,
        Err(error) => return refuse(&context, &source, delivery, error).await,
    };
    tracing::debug!(task = %task.id, kind = task.kind, redelivered = delivery.redelivered, "received");
    failpoint::reached(Moment::Received, task.id.as_str(), 0);
    if let Some(reason) = celery::unsupported(&task, &context.settings.limits) {
        let error = TaskError::poison("canvas", reason);
        return settle::without_attempt(&context, &source, &task, delivery, error).await;
    }
    let Some(handler) = context.handlers.get(task.kind.as_str()).cloned() else {
        return unknown_kind(&context, &source, delivery, &task).await;
    };
    if let Some(live) = context.ledger.find(&task.id)
        && live.generation == task.generation
    {
        return already_here(&context, &live, &task, delivery).await;
    }
    // One that will never start need not wait for its time: its sender hears of it now.
    if let Some(due) = task.not_before
        && let Some(wait) = until(due)
    {
        // Noted before it is asked for, so that no cancel falls in between.
        deferred::note(&context, &source, &task, (&delivery, due));
        if !is_over(&source, &task).await {
            settled(&task, delivery, Settlement::Release { after: wait }).await;
            return;
        }
    }
    deferred::forget(&context, &task.id);
    let demand = handler.demand(&task);
    if let Ok(demand) = &demand
        && let Some(misfit) = misfit(&context, &source, &delivery, demand).await
    {
        match misfit {
            Misfit::Elsewhere(reason) => {
                tracing::debug!(task = %task.id, reason, "released: another worker may have room for it");
                settled(&task, delivery, Settlement::Release { after: damped(&context) }).await;
            }
            Misfit::Nowhere(reason) => {
                let error = TaskError::permanent("unfit", reason);
                admit(&context, &source, &task, delivery, (room, handler, Err(error))).await;
            }
        }
        return;
    }
    admit(&context, &source, &task, delivery, (room, handler, demand)).await;
}

/// Whether the task must not start any more, whenever its time comes.
async fn is_over(source: &SourceRuntime, task: &Task) -> bool {
    task.expires.is_some_and(|expires| expires <= Timestamp::now())
        || matches!(source.broker.topic.cancel_requested(&task.id).await, Ok(Some(_)))
}

fn decode(context: &Context, delivery: &Delivery) -> Result<Decoded, DecodeError> {
    let limits = &context.settings.limits;
    // Native envelopes are read once; whatever is none goes to the reader of all kinds, which tells what it lacks.
    let native = if delivery.headers.contains_key("task") {
        None
    } else {
        ContentType::detect(delivery.content_type.as_deref(), &delivery.body)
            .and_then(|content_type| envelope::decode(&delivery.body, content_type, limits))
            .ok()
    };
    let mut task = match native {
        Some(task) => task,
        None => match message::decode(&delivery.raw(), limits)? {
            Decoded::Task(task) => task,
            unknown @ Decoded::Unknown(_) => return Ok(unknown),
        },
    };
    // The queue it came from is where it is; a plain publish may name none.
    task.queue = delivery.queue.clone();
    apply_rules(&context.settings.rules, &mut task);
    Ok(Decoded::Task(task))
}

/// A Celery task of a name that is not ours: to the queue of the workers that know it, byte for byte, or parked with advice.
async fn pass_on(context: &Context, delivery: Delivery, unknown: &UnknownTask) {
    let settler = delivery.lease.settler;
    let name = &unknown.name;
    let reason = match &context.settings.forward_unknown_to {
        Some(queue) if *queue == delivery.queue => format!(
            "no worker on the queue {queue} knows the Celery task {name:?}, and celery.forward_unknown_to names this very queue; start a Python worker on another queue and name that"
        ),
        Some(queue) if settler.forwards() => {
            let ended = settler.forward(queue).await;
            if ended == Settled::Settled {
                tracing::info!(task = name, %queue, "passed on: its name is none of ours");
            } else {
                tracing::warn!(task = name, %queue, ?ended, "could not be passed on: it comes again");
            }
            return;
        }
        Some(_) => format!(
            "the Celery task {name:?} is not known here, and this broker cannot pass it on to celery.forward_unknown_to; let its producer name that queue"
        ),
        None => format!(
            "the Celery task {name:?} is not known here: set celery.forward_unknown_to to a queue on which a Python worker knows it (such as local), or let its producer name that queue"
        ),
    };
    tracing::warn!(message = %delivery.message, queue = %delivery.queue, reason, "parked");
    let _ = settler.settle(Settlement::DeadLetter { reason }).await;
}

/// Fills in what the first rule for the task's image says and the task does not.
pub(crate) fn apply_rules(rules: &[Rule], task: &mut Task) {
    let Some(Arg::Text(image)) = task.args.get("image") else { return };
    let Some(rule) = rules.iter().find(|rule| rule.image.matches(image)) else { return };
    let resources = &mut task.resources;
    resources.cpus = resources.cpus.or(rule.cpus);
    resources.memory = resources.memory.or(rule.memory);
    resources.gpus = resources.gpus.or(rule.gpus);
    resources.platform = resources.platform.take().or_else(|| rule.platform.clone());
    for (name, amount) in &rule.custom {
        resources.custom.entry(name.clone()).or_insert(*amount);
    }
    task.timeout = task.timeout.or(rule.timeout);
}

/// How long until `at`, when that is still to come.
fn until(at: Timestamp) -> Option<Duration> {
    Duration::try_from(at.duration_since(Timestamp::now())).ok().filter(|wait| !wait.is_zero())
}

fn damped(context: &Context) -> Duration {
    context.settings.release_damping.mul_f64(rand::rng().random_range(0.75..1.25))
}

/// Settles a delivery that never became an attempt.
async fn settled(task: &Task, delivery: Delivery, settlement: Settlement) {
    let ended = delivery.lease.settler.settle(settlement).await;
    if ended != Settled::Settled {
        tracing::debug!(task = %task.id, ?ended, "the delivery was not settled: it comes again");
    }
}

/// A message that cannot be decoded: given back while another worker may know it, else parked. Its sender is answered
/// where it can be told who that is.
async fn refuse(context: &Arc<Context>, source: &Arc<SourceRuntime>, delivery: Delivery, error: DecodeError) {
    let known_elsewhere = match &error {
        DecodeError::Version(version) => others(context, source)
            .await
            .is_none_or(|all| all.iter().any(|p| u64::from(p.envelope) >= *version)),
        DecodeError::Large { .. }
        | DecodeError::ContentType(_)
        | DecodeError::Malformed { .. }
        | DecodeError::Field { .. }
        | DecodeError::UnknownTransform { .. }
        | DecodeError::Executable { .. }
        | DecodeError::Class { .. }
        | DecodeError::Unusable { .. }
        | DecodeError::Transform { .. } => false,
    };
    if known_elsewhere {
        let _ = delivery.lease.settler.settle(Settlement::Release { after: damped(context) }).await;
        return;
    }
    tracing::warn!(message = %delivery.message, queue = %delivery.queue, %error, "parked: it is no task");
    let refused = celery::refused(&delivery.raw(), &context.settings.limits);
    // Whoever has a record is a task that was read before: a garbled message of its id must not end it.
    let unrecorded = match &refused {
        Some(task) => matches!(context.store.load(&task.id).await, Ok(None)),
        None => false,
    };
    if let Some(mut task) = refused.filter(|_| unrecorded) {
        task.queue = delivery.queue.clone();
        let error = TaskError::poison("undecodable", error.to_string());
        settle::without_attempt(context, source, &Arc::new(task), delivery, error).await;
    } else {
        let reason = error.to_string();
        let _ = delivery.lease.settler.settle(Settlement::DeadLetter { reason }).await;
    }
}

/// A kind that is not known here: given back while a live worker knows it, else parked.
async fn unknown_kind(
    context: &Arc<Context>,
    source: &Arc<SourceRuntime>,
    delivery: Delivery,
    task: &Arc<Task>,
) {
    let others = others(context, source).await;
    if others.is_none_or(|all| all.iter().any(|presence| presence.kinds.contains(&task.kind))) {
        settled(task, delivery, Settlement::Release { after: damped(context) }).await;
        return;
    }
    let mut kinds: Vec<&str> = context.handlers.keys().copied().collect();
    kinds.sort_unstable();
    let error = TaskError::poison(
        "unknown_kind",
        format!("no live worker knows the task kind {:?}; known here: {}", task.kind, kinds.join(", ")),
    );
    settle::without_attempt(context, source, task, delivery, error).await;
}

/// The other live workers; `None` when that cannot be known now.
async fn others(context: &Context, source: &SourceRuntime) -> Option<Vec<Presence>> {
    let all = source.broker.fleet.workers().await.ok()?;
    Some(all.into_iter().filter(|presence| *presence.incarnation != *context.identity.incarnation).collect())
}

enum Misfit {
    /// A live worker could run it.
    Elsewhere(String),
    /// None could for so long that it fails.
    Nowhere(String),
}

/// Whether the task asks for more than this worker ever has.
async fn misfit(
    context: &Context,
    source: &SourceRuntime,
    delivery: &Delivery,
    demand: &Demand,
) -> Option<Misfit> {
    let lacking_here = lacking(&context.settings.pool, demand);
    if lacking_here.is_empty() {
        return None;
    }
    let reason = format!("the task needs {}", lacking_here.join(", "));
    let fits_elsewhere = others(context, source).await.is_none_or(|all| {
        all.iter().any(|p| p.queues.contains(&delivery.queue) && lacking(&p.pool, demand).is_empty())
    });
    let waited = delivery.submitted.map(|at| Timestamp::now().duration_since(at));
    let overdue =
        waited.is_some_and(|w| Duration::try_from(w).is_ok_and(|w| w >= context.settings.unfit_timeout));
    if fits_elsewhere || !overdue {
        return Some(Misfit::Elsewhere(reason));
    }
    Some(Misfit::Nowhere(format!(
        "{reason}, and no live worker on the queue {} has that; ask for less or start a worker that has it",
        delivery.queue
    )))
}

/// The task lives in this process: the same message goes on with its new lease, another one is a duplicate. An attempt that
/// has lost its lease, or given its message back, stands for neither: this may be the only message that the task has.
async fn already_here(context: &Context, live: &Live, task: &Task, delivery: Delivery) {
    let hold = context.keeper.find(&task.id);
    match hold.filter(|hold| hold.scope().reason() != Some(CancelReason::LeaseLost)) {
        Some(hold) if live.message == delivery.message.0 => {
            tracing::info!(task = %task.id, "its lease had lapsed and is bound again");
            hold.rebind(delivery.lease);
        }
        Some(_) => settled(task, delivery, Settlement::Ack).await,
        None => settled(task, delivery, Settlement::Retry { after: damped(context) }).await,
    }
}

type Way = (Option<OwnedSemaphorePermit>, Arc<dyn Handler>, Result<Demand, TaskError>);

/// Charges an attempt by compare-and-set and sends it on its way.
async fn admit(
    context: &Arc<Context>,
    source: &Arc<SourceRuntime>,
    task: &Arc<Task>,
    delivery: Delivery,
    (room, handler, demand): Way,
) {
    let charged = charge(context, source, (task, &*handler), &delivery).await;
    let (record, revision, start) = match charged {
        Ok(Charged::Yes(record, revision, start)) => (*record, revision, start),
        Ok(Charged::Finished(current)) => {
            if settle::complete_outbox(context, source, &current.record).await {
                settled(task, delivery, Settlement::Ack).await;
            } else {
                settled(task, delivery, Settlement::Release { after: damped(context) }).await;
            }
            return;
        }
        Ok(Charged::No(settlement)) => return settled(task, delivery, settlement).await,
        Err(error) => {
            tracing::warn!(task = %task.id, %error, "given back: nothing is admitted while the store is away");
            return settled(task, delivery, Settlement::Release { after: damped(context) }).await;
        }
    };
    let Some(charge) = enter(context, source, task, delivery, (record, revision, start)).await else {
        return;
    };
    match start {
        Start::Afresh => go(context, charge, (room, handler, demand)).await,
        Start::Adopted => go_on(context, charge, (room, handler, demand)).await,
        Start::Spooled => {
            // Neither lane nor room is needed: its work is done.
            drop(room);
            heed_cancel(&charge).await;
            Box::pin(spool::take_up(context, charge, &*handler)).await;
        }
    }
}

/// Enters a charged attempt among those that live here; `None` when another of its task does.
async fn enter(
    context: &Arc<Context>,
    source: &Arc<SourceRuntime>,
    task: &Arc<Task>,
    delivery: Delivery,
    (record, revision, start): (Record, Revision, Start),
) -> Option<Charge> {
    let phase = match start {
        Start::Afresh => LivePhase::Staging,
        // It runs all the time: only what ends running attempts ends it.
        Start::Adopted => LivePhase::Running,
        Start::Spooled => LivePhase::Spooled,
    };
    let scope = CancelScope::new();
    let live = Live {
        task: task.id.clone(),
        kind: task.kind.clone(),
        queue: task.queue.clone(),
        generation: task.generation,
        attempt: record.attempts,
        fence: record.fence,
        message: delivery.message.0.clone(),
        phase,
        since: record.times.admitted.unwrap_or_default(),
    };
    if !context.ledger.enter(live, scope.clone()) {
        // Two deliveries of one task were admitted at the same time; the record has the later one's fence, and the
        // earlier one finds that out at its next check. This one waits for it.
        settled(task, delivery, Settlement::Retry { after: damped(context) }).await;
        return None;
    }
    if let Some(stamps) = celery::stamps(task) {
        context.ledger.stamp(&task.id, stamps);
    }
    let hold = context.keeper.hold(task.id.clone(), record.fence, scope.clone(), delivery.lease);
    let report = Reporter::new(task.clone(), record.fence, source.bus.clone(), context.settings.log);
    let attempt = Attempt::new(
        task.clone(),
        (record.attempts, record.fence),
        scope,
        report,
        (context.keeper.gate(&hold), context.identity.clone()),
    );
    attempt.will_be_recorded();
    Some(Charge { attempt, hold, record, revision, source: source.clone() })
}

/// Ends a canceled task that has not started, as if its message had come now.
pub(super) async fn cancel_unstarted(
    context: &Arc<Context>,
    source: &Arc<SourceRuntime>,
    (task, handler): (&Arc<Task>, &dyn Handler),
    delivery: Delivery,
    reason: String,
) {
    match charge(context, source, (task, handler), &delivery).await {
        Ok(Charged::Yes(record, revision, Start::Afresh)) => {
            let charged = (*record, revision, Start::Afresh);
            let Some(charge) = enter(context, source, task, delivery, charged).await else { return };
            charge.attempt.scope().cancel(CancelReason::Canceled(reason));
            settle::conclude(context, charge, Err(canceled_before_start())).await;
        }
        // Somebody has it already, or it is over.
        Ok(Charged::Yes(..) | Charged::Finished(_) | Charged::No(_)) => {}
        Err(error) => {
            tracing::warn!(task = %task.id, %error, "it ends at its time: the store is away");
        }
    }
}

/// From an attempt that an earlier process began to its settlement. It runs already: what would have kept it from starting
/// ends it.
async fn go_on(context: &Arc<Context>, charge: Charge, (room, handler, demand): Way) {
    let attempt = charge.attempt.clone();
    let task = attempt.task();
    tracing::info!(task = %task.id, fence = %attempt.fence(), "adopted: an earlier process of this worker began it");
    heed_cancel(&charge).await;
    // A drain that is over ended what ran then, and this was not there yet.
    if context.lifecycle.phase() >= LifePhase::Stopping {
        attempt.scope().cancel(CancelReason::Left);
    }
    let (result, settling) = match handler.adopt(attempt.clone()).await {
        Ok(staged) => {
            let run = super::lane::Run { staged, demand: demand.unwrap_or_default(), start: Start::Adopted };
            super::lane::run(context, &attempt, run, room).await
        }
        Err(error) => (Err(error), None),
    };
    match kept(&result, &*handler) {
        None => settle::conclude(context, charge, result).await,
        Some((why, keeper)) => {
            drop(settling);
            // Apart, so that what hardly ever happens makes no task's future larger.
            Box::pin(spool::see_through(context, charge, keeper, spool::Begins::Spooled(why))).await;
        }
    }
}

/// Ends what was asked to end while nobody listened.
async fn heed_cancel(charge: &Charge) {
    let id = &charge.attempt.task().id;
    match charge.source.broker.topic.cancel_requested(id).await {
        Ok(Some(reason)) => {
            charge.attempt.scope().cancel(CancelReason::Canceled(reason));
        }
        Ok(None) => {}
        Err(error) => tracing::warn!(task = %id, %error, "whether it was canceled could not be asked"),
    }
}

/// Why outputs of an attempt were not taken, and who keeps them, when its result says so.
fn kept<'a>(
    result: &Result<Value, TaskError>,
    handler: &'a dyn Handler,
) -> Option<(TaskError, &'a dyn Spool)> {
    let why = outstanding(result.as_ref().err()?)?;
    Some((why, handler.spool()?))
}

/// From a charged attempt to its settlement.
async fn go(context: &Arc<Context>, charge: Charge, (room, handler, demand): Way) {
    let attempt = charge.attempt.clone();
    let task = attempt.task();
    if let Some(reason) = not_to_start(context, &charge, &*handler).await {
        attempt.scope().cancel(CancelReason::Canceled(reason));
        return settle::conclude(context, charge, Err(canceled_before_start())).await;
    }
    let demand = match demand {
        Ok(demand) => demand,
        Err(error) => return settle::conclude(context, charge, Err(error)).await,
    };
    // A drain may have begun between the fetch and the ledger's entry.
    if context.lifecycle.phase() >= LifePhase::Draining {
        attempt.scope().cancel(CancelReason::Interrupted);
        return settle::conclude(context, charge, Err(canceled_before_start())).await;
    }
    attempt.report().staging(attempt.number(), attempt.worker(), charge.record.times.clone());
    failpoint::reached(Moment::Staging, task.id.as_str(), attempt.fence().0);
    let (result, settling) = match stager::stage(&*handler, &attempt).await {
        Ok(staged) => {
            context.ledger.advance(&task.id, LivePhase::Staged);
            let run = super::lane::Run { staged, demand, start: Start::Afresh };
            super::lane::run(context, &attempt, run, room).await
        }
        Err(error) => (Err(error), None),
    };
    match kept(&result, &*handler) {
        None => settle::conclude(context, charge, result).await,
        Some((why, keeper)) => {
            drop(settling);
            // Apart, so that what hardly ever happens makes no task's future larger.
            Box::pin(spool::see_through(context, charge, keeper, spool::Begins::Spooled(why))).await;
        }
    }
}

fn canceled_before_start() -> TaskError {
    TaskError::permanent("canceled", "it was canceled before it started")
}

/// Why the task must not start, if so: it expired, was canceled, or its producer says so.
async fn not_to_start(context: &Context, charge: &Charge, handler: &dyn Handler) -> Option<String> {
    let task = charge.attempt.task();
    if let Some(expires) = task.expires
        && expires <= Timestamp::now()
    {
        return Some(format!("it expired at {expires}"));
    }
    match charge.source.broker.topic.cancel_requested(&task.id).await {
        Ok(Some(reason)) => return Some(reason),
        Ok(None) => {}
        Err(error) => tracing::warn!(task = %task.id, %error, "whether it was canceled could not be asked"),
    }
    if let Some(stamps) = celery::stamps(task)
        && let Some((header, _)) = context.ledger.revoked_of(&stamps).first_key_value()
    {
        return Some(format!("revoked through Celery by its stamp {header}"));
    }
    if context.lifecycle.phase() >= LifePhase::Stopping {
        return None;
    }
    match handler.admit(task).await {
        Ok(Admit::Start) => None,
        Ok(Admit::Canceled(reason)) => Some(reason),
        Err(error) => {
            tracing::warn!(task = %task.id, %error, "whether it should start could not be asked");
            None
        }
    }
}

/// How an attempt comes to this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Start {
    /// It begins here.
    Afresh,
    /// It goes on here.
    Adopted,
    /// It has ended but for its outputs, which go on from here.
    Spooled,
}

enum Charged {
    Yes(Box<Record>, Revision, Start),
    Finished(Box<Versioned>),
    No(Settlement),
}

/// Compare-and-set until it holds: each round decides on what the round before found.
async fn charge(
    context: &Arc<Context>,
    source: &Arc<SourceRuntime>,
    (task, handler): (&Arc<Task>, &dyn Handler),
    delivery: &Delivery,
) -> Result<Charged, StoreError> {
    let mut current: Option<Versioned> = None;
    let (mut gone, mut found): (Option<Fence>, Option<(Fence, Start)>) = (None, None);
    loop {
        let meeting = Meeting {
            message: &delivery.message.0,
            source: &source.broker.name,
            submitted: delivery.submitted,
            owner: &context.owner,
            now: Timestamp::now(),
            lease: delivery.lease.duration,
            poison_limit: context.settings.poison_limit,
            gone,
        };
        let (record, expected, start) = match judge(task, &meeting, current.as_ref()) {
            Verdict::Admit(record, expected) => (record, expected, Start::Afresh),
            Verdict::Adopt(record, expected) if found.is_some_and(|(fence, _)| fence == record.fence) => {
                (record, expected, found.map_or(Start::Adopted, |(_, start)| start))
            }
            Verdict::Adopt(record, _) => {
                match handler.remains(task, record.fence, &context.identity.instance).await {
                    Ok(Remains::Adoptable) => found = Some((record.fence, Start::Adopted)),
                    Ok(Remains::Spooled) => found = Some((record.fence, Start::Spooled)),
                    Ok(Remains::Nothing) => gone = Some(record.fence),
                    Err(error) => {
                        tracing::warn!(task = %task.id, %error, "given back: what is left of it cannot be seen");
                        return Ok(Charged::No(Settlement::Release { after: damped(context) }));
                    }
                }
                continue;
            }
            Verdict::Finished(current) => return Ok(Charged::Finished(current)),
            Verdict::Later(after) => return Ok(Charged::No(Settlement::Retry { after })),
            Verdict::Duplicate => return Ok(Charged::No(Settlement::Ack)),
            Verdict::Poison(current) => {
                let reason = format!(
                    "it was started {} times and never came to an outcome: the worker died each time",
                    current.record.unfinished_starts
                );
                settle::bury(context, source, *current, (Some(task), &reason)).await?;
                return Ok(Charged::No(Settlement::DeadLetter { reason }));
            }
        };
        match context.store.put(&record, expected).await? {
            Put::Stored(revision) => return Ok(Charged::Yes(record, revision, start)),
            Put::Conflict(found) => current = found.map(|found| *found),
        }
        if matches!(expected, Expected::At(_)) && current.is_none() {
            tracing::debug!(task = %task.id, "its record was removed meanwhile");
        }
    }
}
