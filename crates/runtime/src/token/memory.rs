//! Experts and buffers of chunks take each other's room.

use super::Model;
use crate::error::Result;
use crate::pass::PassState;

impl Model {
    /// Whether some experts are not in memory.
    pub(super) fn streams_experts(&self) -> bool {
        (self.store.expert_slots() as u64) < self.spec.num_experts()
    }

    /// Has experts make way for the buffers of `tokens` tokens, or buffers of more tokens for experts.
    pub(super) fn make_room(&mut self, tokens: usize) -> Result<()> {
        let Some(room) = self.rooms.iter().find(|room| tokens <= room.tokens) else {
            return Ok(());
        };
        if room.slots > self.store.expert_slots() {
            self.state = PassState::new(Vec::new());
            self.outputs = Vec::new();
        }
        if room.slots != self.store.expert_slots() {
            self.store.resize_experts(room.slots)?;
        }
        Ok(())
    }

    /// Gives back the buffers of the last pass, and experts that there is no room for beside those of one token.
    pub(super) fn give_back(&mut self) -> Result<()> {
        self.state = PassState::new(Vec::new());
        self.outputs = Vec::new();
        if let Some(room) = self.rooms.first()
            && room.slots < self.store.expert_slots()
        {
            self.store.resize_experts(room.slots)?;
        }
        // Small experts would stay with the allocator.
        shardwright_quant::return_free_pages();
        Ok(())
    }
}
