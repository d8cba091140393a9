//! Checking a whole directory: every node, key, name and the free list.
//!
//! Layer: inside `cairn-wafl-dir`, above the node layout. Changes nothing. The walk is a machine
//! that goes on where it stood after a miss, so that a directory of any size is checked with a
//! cache of any size. The directory must not change meanwhile (a snapshot, or under its lock).

use std::collections::VecDeque;

use cairn_units::{Blocks, Cookie, Fbn};

use crate::keys::{DirKeys, Key};
use crate::node::{Content, DirHeader, LEVEL_FREE, Node, NodeNo, open_header};
use crate::{Damage, DirError, DirId, DirRead, HASH_RUN_MAX};

/// Findings that a check keeps; there may be more.
pub const FINDINGS_MAX: usize = 1000;

/// Something wrong with a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finding {
    /// A block is damaged; what lies below it was not checked.
    Node {
        /// Which block.
        fbn: Fbn,
        /// What is wrong with it.
        what: Damage,
    },
    /// An entry has a key that its name does not hash to: it cannot be found by name.
    Misplaced {
        /// Block of the entry.
        fbn: Fbn,
        /// The entry.
        cookie: Cookie,
    },
    /// A name occurs twice.
    Duplicate {
        /// Block of the second entry.
        fbn: Fbn,
        /// The second entry.
        cookie: Cookie,
    },
    /// Two pointers lead to one block.
    CrossLinked {
        /// The block.
        fbn: Fbn,
    },
    /// A block is neither in the tree nor in the free list.
    Lost {
        /// The block.
        fbn: Fbn,
    },
    /// The header says another number of entries than there are.
    EntryCount {
        /// What the header says.
        header: u64,
        /// What was counted.
        counted: u64,
    },
    /// The header says another number of free nodes than there are.
    FreeCount {
        /// What the header says.
        header: u64,
        /// What was counted.
        counted: u64,
    },
}

/// How far a check has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// There is more to check.
    More,
    /// All was checked.
    Done,
}

/// A node still to be looked at: what its parent says of it.
#[derive(Clone, Copy)]
struct Todo {
    node: NodeNo,
    level: u8,
    from: Key,
    upto: Option<Key>,
}

/// A check in progress.
pub struct Checker {
    id: DirId,
    keys: DirKeys,
    file_blocks: Blocks,
    header: Option<DirHeader>,
    stack: Vec<Todo>,
    free_next: Option<NodeNo>,
    seen: Vec<u64>,
    run: VecDeque<(Key, Vec<u8>)>,
    entries: u64,
    free: u64,
    whole: bool,
    findings: Vec<Finding>,
    done: bool,
}

impl Checker {
    /// A check of the directory `id`, whose file has `file_blocks` blocks.
    pub fn new(id: DirId, keys: DirKeys, file_blocks: Blocks) -> Self {
        Self {
            id,
            keys,
            file_blocks,
            header: None,
            stack: Vec::new(),
            free_next: None,
            seen: Vec::new(),
            run: VecDeque::new(),
            entries: 0,
            free: 0,
            whole: true,
            findings: Vec::new(),
            done: false,
        }
    }

    /// What was found so far, at most [`FINDINGS_MAX`].
    pub fn findings(&self) -> &[Finding] {
        &self.findings
    }

    /// Checks one more block.
    ///
    /// # Errors
    /// The block is not in memory: load it and call again.
    pub fn step<V: DirRead>(&mut self, view: &V) -> Result<Progress, V::Miss> {
        if self.done {
            return Ok(Progress::Done);
        }
        let Some(header) = self.header else { return self.start(view) };
        if let Some(todo) = self.stack.last().copied() {
            let block = view.block(todo.node.fbn())?;
            self.stack.pop();
            let level = Some(todo.level);
            match Node::open(todo.node, block, self.id, level) {
                Ok(node) => self.node(&node, todo, &header),
                Err(error) => self.damaged(error),
            }
            return Ok(Progress::More);
        }
        if let Some(free) = self.free_next {
            let block = view.block(free.fbn())?;
            self.free_next = None;
            let next = Node::open(free, block, self.id, Some(LEVEL_FREE))
                .and_then(|node| node.next_free());
            match next {
                Ok(next) => {
                    self.free += 1;
                    self.visit_free(next, &header);
                }
                Err(error) => self.damaged(error),
            }
            return Ok(Progress::More);
        }
        self.end(&header);
        Ok(Progress::Done)
    }

    /// Checks all of it.
    ///
    /// # Errors
    /// A miss: load the block and call again, the check goes on where it stood.
    pub fn run<V: DirRead>(&mut self, view: &V) -> Result<&[Finding], V::Miss> {
        while self.step(view)? == Progress::More {}
        Ok(&self.findings)
    }

    fn start<V: DirRead>(&mut self, view: &V) -> Result<Progress, V::Miss> {
        let block = view.block(NodeNo::ROOT.fbn())?;
        let header = match open_header(&block, self.id, self.keys.check_value()) {
            Ok(header) => header,
            Err(error) => {
                self.damaged(error);
                self.done = true;
                return Ok(Progress::Done);
            }
        };
        self.header = Some(header);
        if u64::from(header.next_unused.get()) > self.file_blocks.get() {
            self.damaged(NodeNo::ROOT.damaged(Damage::Pointer));
        }
        match Node::open(NodeNo::ROOT, block, self.id, None) {
            Ok(root) => {
                let todo = Todo { node: root.at, level: root.level(), from: Key(0), upto: None };
                self.node(&root, todo, &header);
            }
            Err(error) => self.damaged(error),
        }
        self.visit_free(NodeNo(header.free_head.get()), &header);
        Ok(Progress::More)
    }

    fn node(&mut self, node: &Node, todo: Todo, header: &DirHeader) {
        let content = match node.content() {
            Ok(content) => content,
            Err(error) => return self.damaged(error),
        };
        match content {
            Content::Leaf(entries) => {
                for entry in entries {
                    self.entries += 1;
                    let (fbn, cookie) = (node.at.fbn(), entry.key.cookie());
                    if entry.key < todo.from || todo.upto.is_some_and(|upto| entry.key >= upto) {
                        self.damaged(node.at.damaged(Damage::KeyOrder));
                    }
                    if self.keys.run_of(entry.name, header.keying()) != entry.key.run_first() {
                        self.found(Finding::Misplaced { fbn, cookie });
                    }
                    self.name(fbn, entry.key, entry.name);
                }
            }
            Content::Inner(children) => {
                for index in (0..children.len()).rev() {
                    let child = children[index];
                    // The first key of a node stands for the parent's lower bound.
                    let from = if index == 0 { todo.from } else { child.key };
                    let upto = children.get(index + 1).map(|next| next.key).or(todo.upto);
                    if from < todo.from || upto.is_some_and(|upto| from >= upto) {
                        self.damaged(node.at.damaged(Damage::KeyOrder));
                    }
                    if self.visit(child.node, node.at, header) {
                        let level = node.level().saturating_sub(1);
                        self.stack.push(Todo { node: child.node, level, from, upto });
                    }
                }
            }
        }
    }

    /// Compares a name with the others of its run.
    fn name(&mut self, fbn: Fbn, key: Key, name: &[u8]) {
        if self.run.front().is_some_and(|(first, _)| first.run_first() != key.run_first()) {
            self.run.clear();
        }
        if self.run.iter().any(|(_, other)| other == name) {
            self.found(Finding::Duplicate { fbn, cookie: key.cookie() });
        }
        if self.run.len() >= HASH_RUN_MAX {
            self.run.pop_front();
            self.found(Finding::Node { fbn, what: Damage::LongRun });
        }
        self.run.push_back((key, name.to_vec()));
    }

    /// Marks a node as reached; `false` when the pointer must not be followed.
    fn visit(&mut self, node: NodeNo, parent: NodeNo, header: &DirHeader) -> bool {
        let in_file = u64::from(node.0) < self.file_blocks.get();
        if node == NodeNo::ROOT || node.0 >= header.next_unused.get() || !in_file {
            self.damaged(parent.damaged(Damage::Pointer));
            return false;
        }
        let (word, bit) = (node.0 as usize / 64, 1u64 << (node.0 % 64));
        if self.seen.len() <= word {
            self.seen.resize(word + 1, 0);
        }
        if self.seen[word] & bit != 0 {
            self.whole = false;
            self.found(Finding::CrossLinked { fbn: node.fbn() });
            return false;
        }
        self.seen[word] |= bit;
        true
    }

    fn visit_free(&mut self, next: NodeNo, header: &DirHeader) {
        if next != NodeNo::ROOT && self.visit(next, next, header) {
            self.free_next = Some(next);
        }
    }

    fn end(&mut self, header: &DirHeader) {
        self.done = true;
        let header_entries = header.entries.get();
        let header_free = u64::from(header.free_count.get());
        // Behind a damaged node the rest is unknown: counts would only repeat that finding.
        if !self.whole {
            return;
        }
        if header_entries != self.entries {
            let counted = self.entries;
            self.found(Finding::EntryCount { header: header_entries, counted });
        }
        if header_free != self.free {
            self.found(Finding::FreeCount { header: header_free, counted: self.free });
        }
        for number in 1..header.next_unused.get() {
            let word = self.seen.get(number as usize / 64).copied().unwrap_or(0);
            if word & (1 << (number % 64)) == 0 {
                self.found(Finding::Lost { fbn: NodeNo(number).fbn() });
            }
            if self.findings.len() >= FINDINGS_MAX {
                return;
            }
        }
    }

    fn damaged(&mut self, error: DirError) {
        self.whole = false;
        if let DirError::Damaged { fbn, what } = error {
            self.found(Finding::Node { fbn, what });
        }
    }

    fn found(&mut self, finding: Finding) {
        if self.findings.len() < FINDINGS_MAX {
            self.findings.push(finding);
        }
    }
}
