// Operations, and graphs of them.
#pragma once

#include <functional>

#include "state.h"

namespace emulated {

using Work = std::function<void()>;

struct Launch;
struct Copy;

// Something a stream does, now or each time a graph is launched.
struct Operation {
  CUgraphNodeType type = CU_GRAPH_NODE_TYPE_EMPTY;
  Work run;
  std::shared_ptr<Launch> launch;  // of a kernel
  std::shared_ptr<Copy> copy;
  std::shared_ptr<Event> event;  // of an event node: to record, or to wait for

  void count(Totals& totals) const;
  void count_in_graph(Totals& totals) const;
};

struct Node {
  CUgraphNode handle = nullptr;
  Operation operation;
  std::vector<std::shared_ptr<Node>> after;
};

struct Graph {
  CUgraph handle = nullptr;
  std::vector<std::shared_ptr<Node>> nodes;  // in the order of their capture
};

struct GraphExecutable {
  CUgraphExec handle = nullptr;
  std::vector<Operation> operations;  // in the order they run
};

// Adds a node and gives it a handle.
std::shared_ptr<Node> add_node(Graph& graph, Operation operation,
                               std::vector<std::shared_ptr<Node>> after);

// Forgets a graph and its nodes' handles.
void forget(const Graph& graph);

}  // namespace emulated
