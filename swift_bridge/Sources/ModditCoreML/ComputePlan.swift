import Foundation
import ModditCore

#if canImport(CoreML)
import CoreML
#else
import CoreMLStub
#endif

extension LoadedModel {
    /// Asks Core ML where it would run the operations of a function of a compiled model, without loading it.
    ///
    /// The configuration names the function, as for a load. Apple does not say whether a plan heeds that; where it knows
    /// the default function alone, the operations of others are "unknown".
    ///
    /// - Throws: Core ML's errors; `ModditError.missing` if the model has no such function.
    static func place(
        _ compiled: URL, package: String, function: String, computeUnits: ComputeUnits
    ) async throws -> Placement {
        let configuration = MLModelConfiguration()
        configuration.computeUnits = computeUnits.coreML
        configuration.functionName = function
        let plan = try await MLComputePlan.load(contentsOf: compiled, configuration: configuration)
        guard case .program(let program) = plan.modelStructure, let found = program.functions[function] else {
            throw ModditError.missing(
                "[coreml] \(package): Core ML finds no function '\(function)' in what it compiled; convert it again")
        }
        var placement = Placement(package: package, function: function)
        for operation in found.block.operations {
            placement.count(operation.operatorName, on: plan.deviceUsage(for: operation)?.preferred.name)
        }
        return placement
    }
}

extension MLComputeDevice {
    /// What people call it; later systems may have others.
    fileprivate var name: String {
        if case .cpu = self { return "CPU" }
        if case .gpu = self { return "GPU" }
        if case .neuralEngine = self { return "Neural Engine" }
        return "other"
    }
}
