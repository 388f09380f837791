//! From signatures to calls of single tasks, as Celery's `apply_async` takes a chain or a group apart.

use super::{Called, CanvasError};
use crate::task::celery::Signature;
use crate::task::envelope::Limits;
use crate::task::jsonpickle::{Document, Node, Object};

/// The options of a signature, or those that are laid over them.
pub(super) type Options = Vec<(String, Node)>;

/// One task to be called.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) task: String,
    pub(super) args: Vec<Node>,
    /// The named arguments: a dict.
    pub(super) kwargs: Node,
    pub(super) options: Options,
    /// What follows it, in Celery's order: the last one is next.
    pub(super) chain: Vec<Node>,
    pub(super) called: Called,
}

/// What the caller of a signature adds to it.
#[derive(Clone, Debug)]
struct Given {
    /// In front of its arguments, unless it is immutable.
    args: Vec<Node>,
    /// These win over its own.
    options: Options,
    /// What follows it, in Celery's order.
    chain: Vec<Node>,
    called: Called,
}

/// Takes signatures apart. All of them are brought into one document.
pub(super) struct Planner<'a> {
    document: Document,
    calls: Vec<Call>,
    limits: &'a Limits,
    depth: usize,
}

/// Options that are not laid over those that a signature has already.
const KEPT: &[&str] = &["group_id", "stamped_headers"];
/// Options of a chain that are for its last task, not for the first, to which all others go.
const OF_THE_LAST: &[&str] = &["task_id", "group_id", "group_index", "chord"];
/// Chains and groups inside each other.
const DEEPEST: usize = 16;
/// Most calls that may follow one task.
const MOST_CALLS: usize = 10_000;

impl<'a> Planner<'a> {
    pub(super) fn new(limits: &'a Limits) -> Self {
        let document = Document::new();
        Self { document, calls: Vec::new(), limits, depth: 0 }
    }

    pub(super) fn planned(self) -> (Document, Vec<Call>) {
        (self.document, self.calls)
    }

    /// What follows on success. One callback is called by itself; of several, those that are no groups are called as one,
    /// whose id comes of `seed`.
    pub(super) fn callbacks(&mut self, callbacks: &[Signature], seed: &str) -> Result<(), CanvasError> {
        let mut given = Given::first(vec![Node::Null]);
        let nodes = self.bring(callbacks)?;
        if nodes.len() > 1 {
            let (groups, single): (Vec<_>, Vec<_>) =
                nodes.into_iter().partition(|node| self.kind(node).is_some_and(|kind| kind == "group"));
            for group in groups {
                self.call(&group, given.clone())?;
            }
            given.options.push((
                "group_id".to_owned(),
                Node::Text(super::message::derived(&format!("{seed}.callbacks"))),
            ));
            return single.iter().try_for_each(|node| self.call(node, given.clone()));
        }
        nodes.iter().try_for_each(|node| self.call(node, given.clone()))
    }

    /// What follows on success, in Celery's order.
    pub(super) fn chain(&mut self, chain: &[Signature]) -> Result<(), CanvasError> {
        let mut nodes = self.bring(chain)?;
        let Some(next) = nodes.pop() else { return Ok(()) };
        self.call(&next, Given { chain: nodes, ..Given::first(vec![Node::Null]) })
    }

    /// What follows on failure: called as one group with the id of the failed task.
    pub(super) fn errbacks(
        &mut self,
        errbacks: &[Signature],
        failed: &str,
        seed: &str,
    ) -> Result<(), CanvasError> {
        let mut given = Given::first(vec![Node::Text(failed.to_owned())]);
        given
            .options
            .push(("group_id".to_owned(), Node::Text(super::message::derived(&format!("{seed}.errbacks")))));
        self.bring(errbacks)?.iter().try_for_each(|node| self.call(node, given.clone()))
    }

    fn bring(&mut self, signatures: &[Signature]) -> Result<Vec<Node>, CanvasError> {
        signatures.iter().map(|one| Ok(self.document.adopt(one.read(self.limits)?))).collect()
    }

    fn call(&mut self, signature: &Node, given: Given) -> Result<(), CanvasError> {
        self.depth += 1;
        if self.depth > DEEPEST || self.calls.len() >= MOST_CALLS {
            return Err(CanvasError::Signature("its chains and groups are too many or too deep".to_owned()));
        }
        match self.kind(signature).as_deref() {
            None => self.single(signature, given)?,
            Some("chain") => self.chained(signature, given)?,
            Some("group") => self.grouped(signature, given)?,
            Some("chord") => return Err(CanvasError::Chord),
            // Their arguments are their own: Celery puts nothing in front of them.
            Some("xmap" | "xstarmap") => self.single(signature, Given { args: Vec::new(), ..given })?,
            Some(other) => return Err(CanvasError::Kind(other.to_owned())),
        }
        self.depth -= 1;
        Ok(())
    }

    fn single(&mut self, signature: &Node, given: Given) -> Result<(), CanvasError> {
        let own = self.options(signature)?;
        let task = self.document.get(signature, "task").and_then(Node::text);
        let task = task.ok_or_else(|| wrong("it names no task"))?.to_owned();
        let mut args = if self.is_immutable(signature) { Vec::new() } else { given.args };
        args.extend(self.list(signature, "args")?);
        let kwargs = match self.document.get(signature, "kwargs") {
            Some(node) if self.document.entries(node).is_some() => node.clone(),
            None | Some(Node::Null) => self.document.add(Object::Dict(Vec::new())),
            Some(_) => return Err(wrong("its kwargs are no map")),
        };
        let mut options = laid_over(&own, &given.options);
        let own_chain = options.iter().position(|(name, _)| name == "chain").map(|n| options.remove(n).1);
        let chain = match own_chain {
            Some(node) if given.chain.is_empty() => self.document.items(&node).unwrap_or_default().to_vec(),
            _ => given.chain,
        };
        self.calls.push(Call { task, args, kwargs, options, chain, called: given.called });
        Ok(())
    }

    /// The first of a chain is called with the others as its chain, before what follows the chain itself.
    fn chained(&mut self, signature: &Node, given: Given) -> Result<(), CanvasError> {
        let mut steps = Vec::new();
        self.steps(signature, &mut steps, 0)?;
        let laid = laid_over(&self.options(signature)?, &given.options);
        let (of_the_last, mut of_the_first): (Options, Options) =
            laid.into_iter().partition(|(name, _)| OF_THE_LAST.contains(&name.as_str()));
        let mut take = |name: &str| {
            let found = of_the_first.iter().position(|(known, _)| known == name);
            found.map(|n| of_the_first.remove(n).1)
        };
        let (link, link_error) = (take("link"), take("link_error"));
        if let Some(last) = steps.len().checked_sub(1) {
            steps[last] = self.with_options(&steps[last].clone(), &of_the_last)?;
            if let Some(link) = link {
                steps[last] = self.with_more(&steps[last].clone(), "link", &link)?;
            }
        }
        if let Some(errbacks) = link_error {
            for step in &mut steps {
                *step = self.with_more(&step.clone(), "link_error", &errbacks)?;
            }
        }
        let mut args = if self.is_immutable(signature) { Vec::new() } else { given.args };
        args.extend(self.list(signature, "args")?);
        steps.reverse();
        let Some(first) = steps.pop() else { return Ok(()) };
        let chain = given.chain.into_iter().chain(steps).collect();
        self.call(&first, Given { args, options: of_the_first, chain, called: Called::InCanvas })
    }

    /// The tasks of a chain, and of the chains in it.
    fn steps(&self, chain: &Node, steps: &mut Vec<Node>, depth: usize) -> Result<(), CanvasError> {
        if depth > DEEPEST || steps.len() > MOST_CALLS {
            return Err(wrong("its chains are too many or too deep"));
        }
        for step in self.tasks(chain)? {
            if self.kind(&step).as_deref() == Some("chain") {
                self.steps(&step, steps, depth + 1)?;
            } else {
                steps.push(step);
            }
        }
        Ok(())
    }

    /// Every member of a group is called, with the group's id.
    fn grouped(&mut self, signature: &Node, given: Given) -> Result<(), CanvasError> {
        if !given.chain.is_empty() {
            return Err(CanvasError::BehindGroup);
        }
        let mut options = laid_over(&self.options(signature)?, &given.options);
        if let Some(id) = options.iter().position(|(name, _)| name == "task_id") {
            let (_, id) = options.remove(id);
            options.retain(|(name, _)| name != "group_id");
            options.push(("group_id".to_owned(), id));
        }
        let mut args = if self.is_immutable(signature) { Vec::new() } else { given.args };
        args.extend(self.list(signature, "args")?);
        let member = Given { args, options, chain: Vec::new(), called: Called::InCanvas };
        self.tasks(signature)?.iter().try_for_each(|task| self.call(task, member.clone()))
    }

    fn kind(&self, signature: &Node) -> Option<String> {
        self.document.get(signature, "subtask_type").and_then(Node::text).map(str::to_owned)
    }

    fn is_immutable(&self, signature: &Node) -> bool {
        matches!(self.document.get(signature, "immutable"), Some(Node::Bool(true)))
    }

    fn options(&self, signature: &Node) -> Result<Options, CanvasError> {
        match self.document.get(signature, "options") {
            None | Some(Node::Null) => Ok(Vec::new()),
            Some(node) => {
                let entries = self.document.entries(node).ok_or_else(|| wrong("its options are no map"))?;
                let named =
                    entries.iter().filter_map(|(key, value)| Some((key.text()?.to_owned(), value.clone())));
                Ok(named.filter(|(_, value)| !value.is_null()).collect())
            }
        }
    }

    fn list(&self, signature: &Node, name: &str) -> Result<Vec<Node>, CanvasError> {
        match self.document.get(signature, name) {
            None | Some(Node::Null) => Ok(Vec::new()),
            Some(node) => {
                let items =
                    self.document.items(node).ok_or_else(|| wrong(&format!("its {name} are no list")))?;
                Ok(items.to_vec())
            }
        }
    }

    fn tasks(&self, signature: &Node) -> Result<Vec<Node>, CanvasError> {
        let kwargs = self.document.get(signature, "kwargs").unwrap_or(&Node::Null);
        let tasks = self.document.get(kwargs, "tasks").and_then(|tasks| self.document.items(tasks));
        tasks.map(<[Node]>::to_vec).ok_or_else(|| wrong("it is a chain or group without a list of tasks"))
    }

    /// The signature with these options over its own.
    fn with_options(&mut self, signature: &Node, over: &Options) -> Result<Node, CanvasError> {
        if over.is_empty() {
            return Ok(signature.clone());
        }
        let options = laid_over(&self.options(signature)?, over);
        let options = options.into_iter().map(|(name, value)| (Node::Text(name), value)).collect();
        let options = self.document.add(Object::Dict(options));
        let entries = self.document.entries(signature).ok_or_else(|| wrong("it is no map"))?;
        let mut entries: Vec<(Node, Node)> =
            entries.iter().filter(|(key, _)| key.text() != Some("options")).cloned().collect();
        entries.push((Node::Text("options".to_owned()), options));
        Ok(self.document.add(Object::Dict(entries)))
    }

    /// The signature with `more` behind what its option `name` lists.
    fn with_more(&mut self, signature: &Node, name: &str, more: &Node) -> Result<Node, CanvasError> {
        let own =
            self.options(signature)?.into_iter().find(|(known, _)| known == name).map(|(_, value)| value);
        let mut all = own.map(|node| self.listed(&node)).unwrap_or_default();
        // Each signature gets its own: a plain message cannot say that two are the same.
        let more = self.document.copied(more);
        all.extend(self.listed(&more));
        let all = self.document.add(Object::List(all));
        self.with_options(signature, &vec![(name.to_owned(), all)])
    }

    /// What is no list is a list of one.
    fn listed(&self, node: &Node) -> Vec<Node> {
        self.document.items(node).map_or_else(|| vec![node.clone()], <[Node]>::to_vec)
    }
}

impl Given {
    fn first(args: Vec<Node>) -> Self {
        Self { args, options: Vec::new(), chain: Vec::new(), called: Called::Directly }
    }
}

/// `own` with `over` laid over it, but for what stays.
fn laid_over(own: &Options, over: &Options) -> Options {
    let has = |options: &Options, name: &str| options.iter().any(|(known, _)| known == name);
    let stays = |name: &str| KEPT.contains(&name) && has(own, name);
    let kept = own.iter().filter(|(name, _)| stays(name) || !has(over, name));
    kept.chain(over.iter().filter(|(name, _)| !stays(name))).cloned().collect()
}

fn wrong(reason: &str) -> CanvasError {
    CanvasError::Signature(reason.to_owned())
}
