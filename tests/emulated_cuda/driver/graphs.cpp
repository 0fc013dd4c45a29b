#include "graphs.h"

#include <algorithm>
#include <set>

#include "capture.h"
#include "context.h"
#include "copies.h"
#include "events.h"
#include "launch.h"
#include "modules.h"
#include "streams.h"

namespace emulated {
namespace {

// Among the nodes that may run next, the one that was captured last. Branches that lack an edge
// between them thus run in an order that shows it.
std::vector<Operation> execution_order(const Graph& graph) {
  std::vector<std::shared_ptr<Node>> open = graph.nodes;
  std::set<const Node*> done;
  std::vector<Operation> order;
  const auto ready = [&](const std::shared_ptr<Node>& node) {
    return std::all_of(node->after.begin(), node->after.end(),
                       [&](const auto& before) { return done.count(before.get()) > 0; });
  };
  while (!open.empty()) {
    const auto next = std::find_if(open.rbegin(), open.rend(), ready);
    done.insert(next->get());
    order.push_back((*next)->operation);
    open.erase(std::next(next).base());
  }
  return order;
}

void instantiate(CUgraphExec* result, CUgraph handle, unsigned long long flags) {
  const auto graph = state().graphs.get(handle, "graph");
  if (flags & ~static_cast<unsigned long long>(CUDA_GRAPH_INSTANTIATE_FLAG_UPLOAD))
    refuse(CUDA_ERROR_NOT_SUPPORTED, "these instantiation flags are not emulated");
  const auto executable = std::make_shared<GraphExecutable>();
  executable->operations = execution_order(*graph);
  *result = executable->handle = state().executables.add(executable);
}

void launch_operation(const std::shared_ptr<Stream>& stream, const Operation& operation) {
  operation.count_in_graph(state().totals);
  if (operation.type == CU_GRAPH_NODE_TYPE_EVENT_RECORD)
    record(operation.event, stream);
  else if (operation.type == CU_GRAPH_NODE_TYPE_WAIT_EVENT)
    wait_for_event(stream, *operation.event);
  else
    enqueue(stream, operation.run);
}

void launch(CUgraphExec handle, CUstream stream_handle) {
  const auto executable = state().executables.get(handle, "graph executable");
  const auto stream = stream_of(stream_handle);
  refuse_legacy_stream_in_capture(*stream);
  if (stream->capture) refuse(CUDA_ERROR_NOT_SUPPORTED, "graphs inside graphs are not emulated");
  ++state().totals.graph_launches;
  for (const Operation& operation : executable->operations) launch_operation(stream, operation);
}

std::shared_ptr<Node> node_of(CUgraphNode handle) {
  return state().nodes.get(handle, "graph node");
}

void list_nodes(const Graph& graph, CUgraphNode* result, size_t* count) {
  if (!result) {
    *count = graph.nodes.size();
    return;
  }
  const size_t room = *count;
  *count = std::min(room, graph.nodes.size());
  for (size_t i = 0; i < *count; ++i) result[i] = graph.nodes[i]->handle;
  for (size_t i = *count; i < room; ++i) result[i] = nullptr;
}

CUDA_KERNEL_NODE_PARAMS described(Launch& launch) {
  CUDA_KERNEL_NODE_PARAMS result = {};
  result.func = launch.function->handle;
  result.gridDimX = launch.grid[0];
  result.gridDimY = launch.grid[1];
  result.gridDimZ = launch.grid[2];
  result.blockDimX = launch.block[0];
  result.blockDimY = launch.block[1];
  result.blockDimZ = launch.block[2];
  result.sharedMemBytes = launch.dynamic_shared;
  result.kernelParams = launch.argument_pointers.data();
  return result;
}

CUDA_MEMCPY3D described(const Copy& copy) {
  CUDA_MEMCPY3D result = {};
  const bool from_device = copy.source.place == Place::device;
  const bool to_device = copy.destination.place == Place::device;
  result.srcMemoryType = from_device ? CU_MEMORYTYPE_DEVICE : CU_MEMORYTYPE_HOST;
  result.dstMemoryType = to_device ? CU_MEMORYTYPE_DEVICE : CU_MEMORYTYPE_HOST;
  if (from_device) result.srcDevice = copy.source.address;
  if (to_device) result.dstDevice = copy.destination.address;
  if (!from_device) result.srcHost = reinterpret_cast<const void*>(copy.source.address);
  if (!to_device) result.dstHost = reinterpret_cast<void*>(copy.destination.address);
  result.WidthInBytes = copy.bytes;
  result.Height = result.Depth = 1;
  return result;
}

}  // namespace

void Operation::count(Totals& totals) const {
  totals.kernel_launches += type == CU_GRAPH_NODE_TYPE_KERNEL;
  totals.copies += type == CU_GRAPH_NODE_TYPE_MEMCPY;
  totals.memsets += type == CU_GRAPH_NODE_TYPE_MEMSET;
  totals.host_functions += type == CU_GRAPH_NODE_TYPE_HOST;
}

void Operation::count_in_graph(Totals& totals) const {
  totals.graph_kernel_launches += type == CU_GRAPH_NODE_TYPE_KERNEL;
  totals.graph_copies += type == CU_GRAPH_NODE_TYPE_MEMCPY;
}

std::shared_ptr<Node> add_node(Graph& graph, Operation operation,
                               std::vector<std::shared_ptr<Node>> after) {
  const auto node = std::make_shared<Node>();
  node->operation = std::move(operation);
  node->after = std::move(after);
  node->handle = state().nodes.add(node);
  graph.nodes.push_back(node);
  return node;
}

void forget(const Graph& graph) {
  for (const auto& node : graph.nodes) state().nodes.remove(node->handle);
  state().graphs.remove(graph.handle);
}

}  // namespace emulated

using namespace emulated;

extern "C" {

CUresult cuGraphInstantiate(CUgraphExec* result, CUgraph graph, unsigned long long flags) {
  return call("cuGraphInstantiate", Needs::working_context,
              [&] { instantiate(result, graph, flags); });
}

CUresult cuGraphLaunch(CUgraphExec executable, CUstream stream) {
  return call("cuGraphLaunch", Needs::working_context, [&] { launch(executable, stream); });
}

// There is nothing to copy to the device beforehand.
CUresult cuGraphUpload(CUgraphExec executable, CUstream stream) {
  return call("cuGraphUpload", Needs::working_context, [&] {
    state().executables.get(executable, "graph executable");
    stream_of(stream);
  });
}

CUresult cuGraphGetNodes(CUgraph handle, CUgraphNode* nodes, size_t* count) {
  return call("cuGraphGetNodes", Needs::initialization,
              [&] { list_nodes(*state().graphs.get(handle, "graph"), nodes, count); });
}

CUresult cuGraphNodeGetType(CUgraphNode node, CUgraphNodeType* type) {
  return call("cuGraphNodeGetType", Needs::initialization,
              [&] { *type = node_of(node)->operation.type; });
}

CUresult cuGraphKernelNodeGetParams(CUgraphNode node, CUDA_KERNEL_NODE_PARAMS* result) {
  return call("cuGraphKernelNodeGetParams", Needs::initialization, [&] {
    const auto& launch = node_of(node)->operation.launch;
    if (!launch) refuse(CUDA_ERROR_INVALID_VALUE, "this is not a kernel node");
    *result = described(*launch);
  });
}

CUresult cuGraphMemcpyNodeGetParams(CUgraphNode node, CUDA_MEMCPY3D* result) {
  return call("cuGraphMemcpyNodeGetParams", Needs::initialization, [&] {
    const auto& copy = node_of(node)->operation.copy;
    if (!copy) refuse(CUDA_ERROR_INVALID_VALUE, "this is not a copy node");
    *result = described(*copy);
  });
}

// What was launched already still runs.
CUresult cuGraphExecDestroy(CUgraphExec handle) {
  return call("cuGraphExecDestroy", Needs::initialization, [&] {
    state().executables.get(handle, "graph executable");
    state().executables.remove(handle);
  });
}

CUresult cuGraphDestroy(CUgraph handle) {
  return call("cuGraphDestroy", Needs::initialization,
              [&] { forget(*state().graphs.get(handle, "graph")); });
}

}  // extern "C"
